"""Models that do not learn: unchanged, shared, saved by their fingerprint, told from others."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from engram.agents import checkpoint
from engram.kernels.errors import DataError
from engram.policies.pretrained_frozen import Frozen, fingerprint


def encoder(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


class Policy(nn.Module):
    """What learns beside what does not."""

    def __init__(self, model: nn.Module, missing: list[str] | None = None):
        super().__init__()
        self.held = Frozen(model, Path("folder"), missing or [])
        self.head = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.held.model(x))


def test_it_stays_as_it_is() -> None:
    policy = Policy(encoder()).train()
    before = {name: x.clone() for name, x in policy.held.model.state_dict().items()}
    policy(torch.randn(5, 3)).sum().backward()
    optimizer = torch.optim.AdamW(policy.parameters(), weight_decay=0.1)
    optimizer.step()
    assert policy.training and not any(m.training for m in policy.held.modules())
    assert not any(p.requires_grad for p in policy.held.parameters())
    after = policy.held.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_copies_share_it_and_nothing_else() -> None:
    policy = Policy(encoder())
    other = copy.deepcopy(policy)
    assert other.held is not policy.held and other.held.model is policy.held.model
    assert other.head.weight.data_ptr() != policy.head.weight.data_ptr()
    x = torch.randn(5, 3)
    averaged = AveragedModel(policy)
    assert torch.equal(averaged(x), policy(x))
    assert [*averaged.module.held.state_dict()] == ["_extra_state"]  # the hooks came along


def test_a_checkpoint_holds_what_learns_and_knows_the_rest(tmp_path: Path) -> None:
    policy, path = Policy(encoder()), tmp_path / "policy.safetensors"
    checkpoint.write(path, policy.state_dict(), {})
    assert sorted(load_file(path)) == ["head.bias", "head.weight", "held._extra_state"]
    again = Policy(encoder())
    nn.init.zeros_(again.head.weight)
    checkpoint.load_module(again, checkpoint.read(path)[0], path)
    assert torch.equal(again.head.weight, policy.head.weight)
    x = torch.randn(5, 3)
    assert torch.equal(again(x), policy(x))
    for other in (encoder(1), encoder().double(), nn.Sequential(*encoder(), nn.Identity())):
        changed = Policy(other)
        same = isinstance(other[-1], nn.Identity)  # no weight more
        if same:
            checkpoint.load_module(changed, checkpoint.read(path)[0], path)
            continue
        kept = changed.head.weight.clone()
        with pytest.raises(DataError, match=r"of other frozen weights: held\._extra_state is \["):
            checkpoint.load_module(changed, checkpoint.read(path)[0], path)
        assert torch.equal(changed.head.weight, kept)
        with pytest.raises(DataError, match="fingerprint of the weights in folder is"):
            changed.load_state_dict(policy.state_dict())


def test_weights_that_a_folder_lacks_do_not_count() -> None:
    one, other = encoder(), encoder()
    nn.init.ones_(other[3].weight)
    names = ["3.weight"]
    assert Policy(one).held.fingerprint != Policy(other).held.fingerprint
    assert Policy(one, names).held.fingerprint == Policy(other, names).held.fingerprint


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8]
)
def test_one_bit_changes_a_fingerprint(dtype: torch.dtype) -> None:
    x = (torch.rand(7, 5) * 9).to(dtype)
    assert fingerprint({"x": x}) == fingerprint({"x": x.t().contiguous().t()})
    changed = x.clone()
    changed.view(-1).view(torch.uint8)[3] ^= 1
    prints = [{"x": x}, {"x": changed}, {"y": x}, {"x": x.view(5, 7)}, {"x": x, "y": x[:0]}]
    assert len({fingerprint(tensors) for tensors in prints}) == len(prints)
