"""Policies that see with pretrained models, through `engram clone`; needs engram[vla]."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engram.kernels.errors import DataError
from engram.launch.clone_config import compose_clone
from engram.launch.clone_saved import load_clone
from engram.launch.main import main
from engram.policies.language import Vocabulary
from engram.policies.pretrained_vlm import PretrainedVLM, Prompts

QUICK = [
    "memory=gru", "seeds=1", "workers=1", "device=cpu", "demonstrations.episodes=2",
    "task.settings.gap=[2,3]", "task.gaps=[2]", "policy.expert.width=16", "policy.expert.depth=1",
    "imitation.updates=2", "imitation.moments=4", "batches.rows=2", "batches.steps=4",
    "evaluation.every=2", "evaluation.episodes=1", "evaluation.final=1", "evaluation.num_envs=1",
]  # fmt: skip


def vision(name: str, folder: Path) -> list[str]:
    return [f"vision={name}", f"policy.vision.path={folder}"]


@pytest.fixture(params=["vlm", "pretrained"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str, vlms: dict[str, Path], encoders: dict[str, Path], tmp_path: Path) -> Path:
    """The folder of a model, to be changed."""
    source = {"vlm": vlms["qwen"], "pretrained": encoders["dinov2"]}[kind]
    return Path(shutil.copytree(source, tmp_path / "model"))


@pytest.mark.slow
def test_it_is_cloned_resumed_evaluated_and_filmed_without_its_weights_in_the_checkpoint(
    kind: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*QUICK, *vision(kind, model), f"out={tmp_path / 'run'}"]
    assert main(["clone", *arguments]) == 0, capsys.readouterr().err
    run = tmp_path / "run/remember_color/gru/seed0"
    saved = load_file(run / "checkpoint.safetensors")
    assert not [name for name in saved if ".held.model." in name]
    assert sum(name.endswith("held._extra_state") for name in saved) == 2  # policy and average
    cloned, _ = load_clone(run, torch.device("cpu"))
    known = isinstance(cloned.language, Prompts if kind == "vlm" else Vocabulary)
    assert known and isinstance(cloned.policy.perception, PretrainedVLM) == (kind == "vlm")
    found = (run / "evaluation.json").read_text()
    (run / "evaluation.json").unlink()  # so that the checkpoint is read
    moved = model.rename(tmp_path / "moved")
    again = [*QUICK, *vision(kind, moved), f"out={tmp_path / 'run'}", "resume=true"]
    assert main(["clone", *again]) == 0, capsys.readouterr().err
    assert (run / "evaluation.json").read_text() == found
    assert main(["eval", f"out={tmp_path / 'run'}", "episodes=1"]) == 0
    assert main(["film", f"run={run}", f"out={tmp_path}/film.gif"]) == 0
    weights = moved / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "layernorm" in name or "norm1" in name)
    tensors[name] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(DataError, match="another pretrained model, or this one changed"):
        load_clone(run, torch.device("cpu"))
    moved.rename(model)
    with pytest.raises(DataError, match=r"config\.json: path is .*the folder of a model"):
        load_clone(run, torch.device("cpu"))


def compose(*arguments: str) -> dict[str, Any]:
    (tree,) = compose_clone([*QUICK, *arguments]).trees.values()
    return tree


def test_what_cannot_work_is_said_before_anything_is_recorded(
    vlms: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"out={tmp_path / 'run'}"
    for wrong, said in (
        (["demonstrations.objects=true"], "demonstrations.objects is True; allowed: false"),
        (["policy.vision.path="], "the folder of a model; nothing is downloaded"),
        (["policy.vision.spare=1"], "instruction is"),
        (["policy.vision.trained=true", "policy.vision.bfloat16=true"], "bfloat16 is True"),
    ):
        assert main(["clone", *QUICK, *vision("vlm", vlms["llava"]), *wrong, out]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()
