"""Windows of a real dataset: padding and other episodes reach nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.utils.constants import OBS_STATE
from torch import Tensor
from torch.utils.data import default_collate

from engram.kernels.errors import DataError
from lerobot_policy_engram import MemoryConfig, attach_memory
from lerobot_policy_engram.frames import evaluating, window_starts

IMAGE = "observation.images.top"


@pytest.fixture
def policy(plain: Any) -> Any:
    policy = attach_memory(plain, MemoryConfig(width=8, window=4)).train()
    torch.nn.init.normal_(policy.engram.reading.weight)
    return policy


def last_reads(policy: Any, batch: dict[str, Any]) -> Tensor:
    heard: list[Tensor] = []
    hook = policy.engram.reading.register_forward_hook(lambda _m, _x, read: heard.append(read[-1]))
    policy.forward(dict(batch))
    hook.remove()
    return heard[0]


@pytest.mark.parametrize("kind", ["act"], indirect=True)
def test_dataset_gives_the_window_that_the_policy_asks_for(policy: Any, dataset: Any):
    read = dataset()
    stamps = resolve_delta_timestamps(policy.config, read.meta)
    assert stamps[OBS_STATE] == [-0.3, -0.2, -0.1, 0.0]
    windows = dataset(delta_timestamps=stamps)
    # The second frame of the second episode, whose first is number 7 of the dataset.
    sample = windows[8]
    assert sample[f"{OBS_STATE}_is_pad"].tolist() == [True, True, False, False]
    # Frames before the episode are its first one: never another episode's, first or last.
    assert sample[OBS_STATE][:, :2].tolist() == [[1, 0], [1, 0], [1, 0], [1, 1]]
    assert sample[IMAGE].shape == (4, 3, 32, 32)


@pytest.mark.parametrize("kind", ["act"], indirect=True)
def test_policy_learns_from_windows_as_they_come(policy: Any, dataset: Any):
    stamps = resolve_delta_timestamps(policy.config, dataset().meta)
    samples = dataset(delta_timestamps=stamps)
    batch = default_collate([samples[index] for index in (7, 8, 9, 10, 11)])
    reads = last_reads(policy, batch)
    # What is read at frame t of an episode is what the memory made of frames 0 to t alone.
    for row in range(4):  # the fifth frame's window lacks the first
        states = torch.stack([samples[7 + t][OBS_STATE][-1] for t in range(row + 1)])
        images = torch.stack([samples[7 + t][IMAGE][-1] for t in range(row + 1)])
        with evaluating(policy):
            features = policy.frame_features({OBS_STATE: states, IMAGE: images})[:, None]
        start = torch.arange(row + 1)[:, None] == 0
        expected, _ = policy.engram(features, policy.engram.initial_state(1), start)
        torch.testing.assert_close(reads[row], expected[-1, 0], atol=1e-5, rtol=1e-5)


def test_padding_reaches_nothing(policy: Any, window: Callable[..., Any]):
    batch = window(policy, [0, 2])
    noisy = {key: value.clone() for key, value in batch.items()}
    for key in policy.config.input_features:
        noisy[key][1, :2] = float("nan")
    losses = []
    for either in (batch, noisy):
        torch.manual_seed(1)
        losses.append(policy.forward(either)[0])
    assert losses[0].isfinite() and torch.equal(*losses)


def test_gradient_of_padding_is_zero(policy: Any, window: Callable[..., Any]):
    batch = window(policy, [0, 2])
    batch[OBS_STATE].requires_grad_()
    policy.forward(batch)[0].backward()
    gradient = batch[OBS_STATE].grad
    assert not gradient[1, :2].any()
    assert gradient[0].any(-1).all() and gradient[1, 2:].any(-1).all()


def test_starts_are_where_padding_ends():
    pad = torch.tensor([[True, True, False, False], [False, False, False, False]])
    batch = {"o": torch.zeros(2, 4, 3), "o_is_pad": pad}
    assert window_starts(batch, ["o"]).t().int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    "batch, message",
    [
        ({"o": torch.zeros(2, 3)}, "o_is_pad is missing and o \\[2, 3\\]; allowed: \\[B, T\\]"),
        ({"o": torch.zeros(2, 3), "o_is_pad": torch.zeros(2, 4) > 0}, "o_is_pad is \\[2, 4\\]"),
        (
            {"o": torch.zeros(1, 3), "o_is_pad": torch.tensor([[False, True, False]])},
            "padding follows a frame",
        ),
        (
            {"o": torch.zeros(1, 3), "o_is_pad": torch.tensor([[True, True, True]])},
            "padding follows a frame",
        ),
    ],
)
def test_batches_without_history_are_refused(batch: dict[str, Tensor], message: str):
    with pytest.raises(DataError, match=message):
        window_starts(batch, ["o"])


def test_loss_is_that_of_the_last_frame(policy: Any, window: Callable[..., Any]):
    torch.nn.init.zeros_(policy.engram.reading.weight)  # the memory is not heard
    batch = window(policy, [0, 0])
    changed = {key: value.clone() for key, value in batch.items()}
    oldest = slice(0, 4 - policy.config.n_obs_steps)
    for key in policy.config.input_features:
        changed[key][:, oldest] += 1
    losses = []
    for either in (batch, changed):
        torch.manual_seed(1)
        losses.append(policy.forward(either)[0])
    assert torch.equal(*losses)


def test_each_part_evaluates_and_trains_again():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    with pytest.raises(KeyError), evaluating(module):
        assert not any(part.training for part in module.modules())
        raise KeyError
    assert [part.training for part in module.modules()] == [True, True, False]
