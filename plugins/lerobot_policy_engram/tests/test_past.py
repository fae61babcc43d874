"""The loss that asks the memory of `engram_vla` for what was seen before."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_vla import IMAGE, STATE, act, build, observe, samples
from torch.utils.data import default_collate

from engram.kernels.errors import InvalidValueError
from lerobot_policy_engram import MemoryConfig, chunk_starts, load_policy


def seeded(policy: Any, batch: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    return policy.forward(batch)


def test_it_is_added_in_its_weight(dataset: Callable[..., Any]):
    without = build(dataset).train()
    batch = default_collate([samples(without, dataset)[index] for index in (3, 9, 16, 20)])
    action, _ = seeded(without, batch)
    found = []
    for weight in (1.0, 2.0):
        policy = build(dataset, past=weight).train()
        loss, remarks = seeded(policy, batch)
        torch.testing.assert_close(loss.item(), sum(remarks.values()))
        assert remarks["action_loss"] == action.item()  # the same weights, the same noise
        found.append(remarks["past_loss"])
    assert found[0] > 0 and math.isclose(2 * found[0], found[1], rel_tol=1e-6)


@pytest.mark.parametrize("name", ["gru", "memoryvla"])
def test_it_reaches_every_weight_of_its_own(dataset: Callable[..., Any], name: str):
    policy = build(dataset, name, past=1.0).train()
    batch = default_collate([samples(policy, dataset)[index] for index in (3, 9, 16, 20)])
    seeded(policy, batch)[0].backward()
    for name, weight in policy.recollection.named_parameters():
        assert weight.grad is not None and weight.grad.any(), name


def test_padding_is_asked_nothing(dataset: Callable[..., Any]):
    policy = build(dataset, past=1.0).train()
    batch = default_collate([samples(policy, dataset)[index] for index in (1, 20)])
    noisy = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    for key in (IMAGE, STATE):
        noisy[key][batch[f"{key}_is_pad"]] = 0.5
    assert batch[f"{IMAGE}_is_pad"].any()
    assert torch.equal(seeded(policy, batch)[0], seeded(policy, noisy)[0])


def test_streams_are_asked_within_a_chunk_and_an_episode(dataset: Callable[..., Any]):
    policy = build(dataset, past=1.0).train()
    read = samples(policy, dataset, policy.config.frame_config())
    batch = default_collate([read[place] for place in (5, 6, 7, 8)])  # an episode begins at 7
    start = chunk_starts(batch, 1)
    assert start.flatten().tolist() == [False, False, True, False]
    asked: list[Any] = []
    recall = policy.recollection.past.recall
    recall.forward = lambda code, past, _: asked.append(past) or code.new_zeros(len(code))
    _, remarks, _ = policy.forward_chunk(batch, policy.initial_state(1), start)
    assert remarks["past_loss"] == 0
    (past,) = asked  # of frames 6 and 8 the ones before them; the others have none before
    seen = policy._image(batch[IMAGE][:, -1]).movedim(-1, 1)
    small = F.adaptive_avg_pool2d(seen.float(), 8).round().to(torch.uint8).movedim(1, -1)
    assert torch.equal(past[[1, 3]], small[[0, 2]])


def test_saved_and_loaded_it_learns_and_acts_the_same(dataset: Callable[..., Any], tmp_path: Path):
    policy = build(dataset, past=1.0)
    policy.save_pretrained(tmp_path)
    again = load_policy(tmp_path)
    batch = default_collate([samples(policy, dataset)[index] for index in (3, 9)])
    assert torch.equal(seeded(policy.eval(), batch)[0], seeded(again.eval(), batch)[0])
    seen = observe()
    assert torch.equal(act(policy, seen), act(again, seen))


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_that_cannot_work_are_refused(weight: float, dataset: Callable[..., Any]):
    with pytest.raises(InvalidValueError, match=rf"policy\.past is {weight}; allowed: finite, 0"):
        build(dataset, past=weight)


def test_single_frames_have_no_past(dataset: Callable[..., Any]):
    memory = MemoryConfig("gru", width=16, window=1)
    policy = build(dataset, past=1.0, memory=memory, moments=1).train()
    batch = default_collate([samples(policy, dataset)[index] for index in (3, 9)])
    with pytest.raises(InvalidValueError, match="frames is 1; allowed: 2 or more"):
        policy.forward(batch)
    batch = default_collate([samples(policy, dataset, policy.config.frame_config())[3]])
    with pytest.raises(InvalidValueError, match="frames is 1; allowed: 2 or more"):
        policy.forward_chunk(batch, policy.initial_state(1), torch.ones(1, 1) > 0)
