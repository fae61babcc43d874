"""The memories that a configuration can name."""

from typing import Any

import pytest
import torch

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import GRU, Window
from engram.memory.sequence.streams import Streams
from lerobot_policy_engram import MemoryConfig
from lerobot_policy_engram.gated_memory import GatedMemory
from lerobot_policy_engram.named_memory import (
    BANKS,
    make_memory,
    make_stream_memory,
)
from lerobot_policy_engram.presets import presets


@pytest.mark.parametrize("name", [*presets("memory"), *BANKS])
def test_every_preset_of_engram_runs_between_the_projections(name: str):
    memory = GatedMemory(5, 3, MemoryConfig(name, width=16)).eval()  # one bank drops out
    torch.nn.init.normal_(memory.reading.weight)
    features, start = torch.randn(6, 2, 5), torch.tensor([[1, 1], *[[0, 0]] * 5]) > 0
    with torch.no_grad():
        reads, _ = memory(features, memory.initial_state(2), start)
        state = memory.initial_state(2)
        for t in range(6):
            read, state = memory.step(features[t], state, start[t])
            torch.testing.assert_close(read, reads[t], atol=1e-5, rtol=1e-5)
    assert reads.shape == (6, 2, 3)


@pytest.mark.parametrize("name", [*presets("streams"), *BANKS, "engram.memory.sequence.Window"])
def test_every_preset_of_streams_runs(name: str):
    memory = make_stream_memory(MemoryConfig(name, width=16), (3, 8), (1, 16)).eval()
    x = Streams(torch.randn(4, 2, 3, 8), torch.randn(4, 2, 1, 16))
    with torch.no_grad():
        y, _ = memory(x, memory.initial_state(2), torch.zeros(4, 2) > 0)
    assert [part.shape for part in y] == [part.shape for part in x]


def test_streams_of_vectors_have_the_width_that_is_asked_for():
    memory: Any = make_stream_memory(MemoryConfig("gru", width=20), (3, 8), (1, 16))
    assert memory.memory.d_in == 20
    detached: Any = make_stream_memory(MemoryConfig("bank_detached"), (3, 8), (1, 16))
    assert detached.gradient_writes == 0 and detached.capacity == 16


def test_presets_are_those_of_the_command_line():
    assert {"gru", "lstm", "window", "hcam", "memo", "none"} <= set(presets("memory"))


def test_settings_change_a_preset():
    assert make_memory(MemoryConfig("gru", {"d_out": 3}, width=5)).d_out == 3
    memory: Any = make_memory(MemoryConfig("window", {"layer": {"window": 7}}, width=8))
    assert memory.memories[0].memory.window == 7


def test_any_memory_class_can_be_named():
    config = MemoryConfig("engram.memory.sequence.Window", {"window": 3, "heads": 2}, width=8)
    memory = make_memory(config)
    assert isinstance(memory, Window) and memory.window == 3
    assert isinstance(make_memory(MemoryConfig("engram.memory.sequence.GRU")), GRU)


@pytest.mark.parametrize(
    "config, message",
    [
        (MemoryConfig("grue"), "policy.memory.name is 'grue'; allowed: .*, gru, .*, memoryvla, "),
        (MemoryConfig("nowhere.GRU"), "policy.memory.name is 'nowhere.GRU'"),
        (MemoryConfig("torch.nn.GRU"), "a SequenceMemory that is installed"),
        (MemoryConfig("engram.memory.sequence.Nothing"), "a SequenceMemory that is installed"),
        (MemoryConfig("gru", {"size": 3}), "settings of gru"),
        (MemoryConfig("window", {"layer": {"windows": 3}}), "settings of window"),
        (MemoryConfig("engram.memory.sequence.GRU", {"size": 3}), "settings of engram.memory"),
        (MemoryConfig("memoryvla", {"consolidation": "fifo"}), "allowed: capacity, dropout"),
        (MemoryConfig("gru", {"_target_": "os.system"}), "names of settings"),
        (MemoryConfig("hcam", {"layer": {"_target_": "os.system"}}), "names of settings"),
        (MemoryConfig("hcam", {"layer": [[{"_target_": "os.system"}]]}), "names of settings"),
        (MemoryConfig("hcam", width=7), "d_in"),
    ],
)
def test_what_is_no_memory_is_refused(config: MemoryConfig, message: str):
    with pytest.raises(InvalidValueError, match=message):
        make_memory(config)


@pytest.mark.parametrize(
    "config, message",
    [
        (MemoryConfig(width=0), "policy.memory.width is 0; allowed: 1 or more"),
        (MemoryConfig(window=1), "policy.memory.window is 1; allowed: 2 or more"),
        (MemoryConfig(grid=0), "policy.memory.grid is 0; allowed: 1 or more"),
        (MemoryConfig(lr=0.0), "policy.memory.lr is 0.0; allowed: more than 0"),
    ],
)
def test_impossible_numbers_are_refused(config: MemoryConfig, message: str):
    with pytest.raises(InvalidValueError, match=message):
        config.check(n_obs_steps=2)


def test_nothing_is_read_before_training():
    memory = GatedMemory(5, 3, MemoryConfig(width=4))
    reads, _ = memory(torch.randn(4, 2, 5), memory.initial_state(2), torch.zeros(4, 2) > 0)
    assert torch.equal(reads, torch.zeros(4, 2, 3))
