"""A small study of cloning, recorded and finished once for all tests that look at one."""

from pathlib import Path

import pytest

from engram.launch.main import main

OBJECTS = [
    "demonstrations.objects=true",
    "demonstrations.episodes=3",
    "device=cpu",
    "workers=1",
]
TINY = [
    *OBJECTS,
    "task.settings.gap=[2,2]",
    "task.gaps=[1,3]",
    "policy.perceptual=8",
    "policy.cognitive=16",
    "policy.features=16",
    "policy.expert.width=16",
    "policy.expert.depth=1",
    "policy.denoising.steps=2",
    "batches.rows=2",
    "batches.steps=6",
    "imitation.updates=4",
    "imitation.moments=4",
    "evaluation.every=2",
    "evaluation.episodes=2",
    "evaluation.final=2",
    "evaluation.num_envs=2",
]
STUDY = ["clone", *TINY, "memory=[none,gru]", "seeds=1"]


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Settings of the smallest study."""
    return TINY


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study; not to be changed."""
    pytest.importorskip("mink", reason="needs engram[manipulation]")
    pytest.importorskip("pyarrow", reason="needs engram[demonstrations]")
    out = tmp_path_factory.mktemp("study") / "s"
    assert main([*STUDY, f"out={out}"]) == 0
    return out
