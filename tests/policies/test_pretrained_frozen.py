"""Models that do not learn: unchanged, shared, saved by a fingerprint, told from others."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from engram.agents import checkpoint
from engram.agents.imitation import average_unshared
from engram.kernels.errors import DataError
from engram.policies.pretrained_frozen import Frozen


class Policy(nn.Module):
    """What learns beside what does not."""

    def __init__(self, folder: Path):
        super().__init__()
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        self.held = Frozen(model, folder)
        self.head = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.held.model(x))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a model."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text('{"mean": 0.5}')
    (folder / "chat_template.jinja").write_text("{{ text }}")
    return folder


def test_it_stays_as_it_is(folder: Path) -> None:
    policy = Policy(folder).train()
    before = {name: x.clone() for name, x in policy.held.model.state_dict().items()}
    policy(torch.randn(5, 3)).sum().backward()
    torch.optim.AdamW(policy.parameters(), weight_decay=0.1).step()
    assert policy.training and not any(m.training for m in policy.held.modules())
    assert not any(p.requires_grad for p in policy.held.parameters())
    after = policy.held.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_copies_share_it_and_nothing_else(folder: Path) -> None:
    policy, x = Policy(folder), torch.randn(5, 3)
    averaged = AveragedModel(policy)
    other = averaged.module
    assert other.held is not policy.held and other.held.model is policy.held.model
    assert other.head.weight.data_ptr() != policy.head.weight.data_ptr()
    assert torch.equal(averaged(x), policy(x))
    assert [*other.held.state_dict()] == ["_extra_state"]  # the hooks came along


@pytest.mark.parametrize("moved", ["copy", "original"])
def test_a_copy_that_is_cast_is_cast_alone(moved: str, folder: Path) -> None:
    policy, x = Policy(folder), torch.randn(5, 3)
    wanted, other = policy(x), copy.deepcopy(policy)
    cast, kept = (other, policy) if moved == "copy" else (policy, other)
    assert cast.double()(x.double()).dtype == torch.float64
    assert torch.equal(kept(x), wanted)
    assert kept.held.model is not cast.held.model


def test_an_average_leaves_what_is_shared_alone() -> None:
    """Of infinity a moving average makes NaN."""
    shared, mine, theirs = torch.tensor([-torch.inf]), torch.zeros(1), torch.ones(1)
    average_unshared(0.75)([shared, mine], [shared.detach(), theirs], torch.tensor(1))
    assert shared.item() == -torch.inf and mine.item() == 0.25
    average_unshared(0.75)([shared], [shared.detach()], torch.tensor(1))


def test_a_checkpoint_holds_what_learns(folder: Path, tmp_path: Path) -> None:
    policy, path = Policy(folder), tmp_path / "policy.safetensors"
    checkpoint.write(path, policy.state_dict(), {})
    assert sorted(load_file(path)) == ["head.bias", "head.weight", "held._extra_state"]
    again, x = Policy(folder), torch.randn(5, 3)
    assert not torch.equal(again(x), policy(x))
    checkpoint.load_module(again, checkpoint.read(path)[0], path)
    assert torch.equal(again(x), policy(x))


def permute(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["0.weight"] = tensors["0.weight"].flip(1).contiguous()
    save_file(tensors, folder / "model.safetensors")


CHANGES = {
    "weights": permute,
    "config": lambda folder: (folder / "config.json").write_text('{"mean": 0.4}'),
    "template": lambda folder: (folder / "chat_template.jinja").write_text("{{ Text }}"),
    "file": lambda folder: (folder / "config.json").rename(folder / "configs.json"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changed_is_refused_before_anything_is_loaded(
    change: str, folder: Path, tmp_path: Path
) -> None:
    policy, path = Policy(folder), tmp_path / "policy.safetensors"
    checkpoint.write(path, policy.state_dict(), {})
    (folder / "README.md").write_text("decides nothing")
    checkpoint.load_module(Policy(folder), checkpoint.read(path)[0], path)
    CHANGES[change](folder)
    changed = Policy(folder)
    kept = changed.head.weight.clone()
    with pytest.raises(DataError, match=r"another pretrained model, or .*: held\._extra_state is"):
        checkpoint.load_module(changed, checkpoint.read(path)[0], path)
    assert torch.equal(changed.head.weight, kept)
    with pytest.raises(DataError, match=r"fingerprint of .*model is \d+; allowed: \d+, with"):
        changed.load_state_dict(policy.state_dict())


def test_a_folder_may_move(folder: Path, tmp_path: Path) -> None:
    policy = Policy(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    Policy(moved).load_state_dict(policy.state_dict())
