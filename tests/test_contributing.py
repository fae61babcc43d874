"""The example that CONTRIBUTING.md gives a newcomer works as it is printed."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import engram.memory.sequence

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLE = "engram.memory.sequence.running_mean"


def block(language: str, containing: str) -> str:
    (found,) = [
        code
        for code in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
        if containing in code
    ]
    return found


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The example's module, importable under the name it would have in the tree."""
    folder = tmp_path_factory.mktemp("sequence")
    (folder / "running_mean.py").write_text(block("python", "class RunningMean("))
    with pytest.MonkeyPatch.context() as patch:
        places = [*engram.memory.sequence.__path__, str(folder)]
        patch.setattr(engram.memory.sequence, "__path__", places)
        yield importlib.import_module(EXAMPLE)
    del sys.modules[EXAMPLE], engram.memory.sequence.running_mean


def test_the_test_in_the_text_passes(example: Any):
    scope: dict[str, Any] = {}
    exec(block("python", "def test_reads_the_mean"), scope)
    scope["test_reads_the_mean_of_what_came_before_in_the_same_episode"]()


def test_the_memory_in_the_text_steps_as_it_learns(example: Any):
    memory = example.RunningMean(4)
    x, start = torch.randn(9, 3, 4), torch.rand(9, 3) < 0.3
    whole, after = memory(x, memory.initial_state(3), start)
    state, parts = memory.initial_state(3), []
    for x_t, start_t in zip(x, start, strict=True):
        y, state = memory.step(x_t, state, start_t)
        parts.append(y)
    torch.testing.assert_close(torch.stack(parts), whole)
    torch.testing.assert_close(state, after)


def test_the_settings_in_the_text_name_the_memory(example: Any):
    settings = OmegaConf.create(block("yaml", "running_mean"))
    memory = instantiate(settings)(6)
    assert isinstance(memory, example.RunningMean) and memory.d_in == 6
