"""Acting: the memory sees every frame, whatever is planned, and each row has its own episode."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from lerobot_policy_engram import MemoryConfig, attach_memory

ROWS = 3


@pytest.fixture
def policy(plain: Any) -> Any:
    """A policy whose memory is heard."""
    policy = attach_memory(plain, MemoryConfig(width=8, window=7)).eval()
    torch.nn.init.normal_(policy.engram.reading.weight)
    return policy


@pytest.fixture
def observations(policy: Any, frames: Callable[..., Any]) -> list[dict[str, Any]]:
    return [frames(policy, ROWS) for _ in range(7)]


def rows_of(observation: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {key: value[rows] for key, value in observation.items()}


def act(policy: Any, observation: dict[str, Any], seed: int = 0) -> Tensor:
    torch.manual_seed(seed)  # of denoising
    with torch.inference_mode():
        return policy.select_action(dict(observation))


def readings(policy: Any) -> list[Tensor]:
    """What is read from the memory from now on."""
    heard: list[Tensor] = []
    policy.engram.reading.register_forward_hook(lambda _m, _x, read: heard.append(read.clone()))
    return heard


def test_every_frame_is_written_while_planned_actions_are_left(policy: Any, observations: Any):
    heard = readings(policy)
    planned = []
    for observation in observations:
        act(policy, observation)
        planned.append(len(policy.action_queue()))
    assert planned == [2, 1, 0, 2, 1, 0, 2]  # three actions a plan: most calls only wrote
    assert len(heard) == len(observations)
    assert all((new != old).any(1).all() for old, new in pairwise(heard))


def test_acting_reads_what_learning_reads(
    policy: Any, observations: Any, window: Callable[..., Any]
):
    heard = readings(policy)
    for observation in observations:
        act(policy, observation)
    batch = window(policy, [0] * ROWS)
    for key in policy.config.input_features:
        batch[key] = torch.stack([observation[key] for observation in observations], dim=1)
    with torch.no_grad():
        policy.train().forward(batch)
    torch.testing.assert_close(heard[-1], torch.stack(heard[:-1]), atol=1e-5, rtol=1e-5)


def test_frames_seen_between_plans_are_written_alike(policy: Any, observations: Any):
    heard = readings(policy)
    for observation in observations:
        act(policy, observation)
    policy.reset()
    for observation in observations:
        policy.observe(dict(observation))
    assert torch.equal(torch.stack(heard[:7]), torch.stack(heard[7:]))
    assert not policy.action_queue()


def test_dropout_of_the_memory_is_off_where_a_policy_in_training_acts(plain: Any, frames: Any):
    memory = MemoryConfig("memoryvla_plus", {"dropout": 0.5}, width=8, window=7)
    policy = attach_memory(plain, memory).train()
    torch.nn.init.normal_(policy.engram.reading.weight)
    heard, seen = readings(policy), [frames(policy, ROWS) for _ in range(3)]
    for seed in (0, 1):
        policy.train().reset()
        for observation in seen:
            act(policy, observation, seed)
    assert torch.equal(torch.stack(heard[:3]), torch.stack(heard[3:]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_frame_that_holds_no_numbers_is_refused_and_not_remembered(
    policy: Any, observations: Any, value: float
):
    twin = copy.deepcopy(policy)
    for each in (policy, twin):
        act(each, observations[0])
    for key in policy.config.input_features:
        spoilt = {**observations[1], key: observations[1][key].clone()}
        spoilt[key][1].view(-1)[-1] = value
        for call in (policy.select_action, policy.observe, policy.predict_action_chunk):
            with pytest.raises(InvalidValueError, match=f"{key} is {value}; allowed: finite"):
                call(spoilt)
    for observation in observations[1:]:
        assert torch.equal(act(policy, observation), act(twin, observation))


def test_reset_forgets(policy: Any, observations: Any):
    first = [act(policy, observation) for observation in observations]
    policy.reset()
    again = [act(policy, observation) for observation in observations]
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_without_reset_the_past_is_heard(policy: Any, observations: Any):
    policy.config.n_action_steps = 1
    policy.reset()
    fresh = act(policy, observations[-1])
    policy.reset()
    for observation in observations:
        informed = act(policy, observation)
    assert not torch.allclose(fresh, informed)


def test_rows_that_begin_remember_nothing(policy: Any, observations: Any):
    heard = readings(policy)
    for observation in observations[:4]:
        act(policy, observation)
    policy.reset_rows(torch.tensor([False, True, False]))
    act(policy, observations[4])
    row = heard[-1][1] if heard[-1].ndim == 2 else None
    policy.reset()
    act(policy, observations[4])
    assert row is not None and torch.equal(row, heard[-1][1])
    assert not torch.allclose(heard[-1][0], heard[-2][0])


@pytest.mark.parametrize("seen", [2, 3, 4])  # with one action left, with none, with two
def test_rows_that_begin_act_as_in_a_new_episode_and_the_others_go_on(
    policy: Any, observations: Any, seen: int
):
    twin = copy.deepcopy(policy)
    for observation in observations[:seen]:
        act(policy, observation)
        act(twin, observation)
    mask = torch.tensor([False, True, False])
    policy.reset_rows(mask)
    ours = act(policy, observations[seen])
    undisturbed = act(twin, observations[seen])
    twin.reset()
    anew = act(twin, observations[seen])
    torch.testing.assert_close(ours[mask], anew[mask])
    if seen % 3:  # where all are planned anew, the noise is that of another call
        assert torch.equal(ours[~mask], undisturbed[~mask])
    else:
        torch.testing.assert_close(ours[~mask], undisturbed[~mask])


def test_resetting_all_rows_is_a_reset(policy: Any, observations: Any):
    for observation in observations[:2]:
        act(policy, observation)
    policy.reset_rows(torch.ones(ROWS, dtype=torch.bool))
    begun = act(policy, observations[2])
    policy.reset()
    assert torch.equal(begun, act(policy, observations[2]))


def test_before_the_first_frame_every_row_begins_anyway(policy: Any, observations: Any):
    policy.reset_rows(torch.tensor([True]))
    assert len(act(policy, observations[0])) == ROWS


def test_rows_do_not_mix(policy: Any, observations: Any):
    heard = readings(policy)
    for observation in observations:
        act(policy, observation)
    together = [read[:1] for read in heard]
    policy.reset()
    heard.clear()
    for observation in observations:
        act(policy, rows_of(observation, slice(0, 1)))
    torch.testing.assert_close(heard, together, atol=1e-5, rtol=1e-5)


def test_state_does_not_grow(policy: Any, observations: Any):
    act(policy, observations[0])
    at_first = states.nbytes(policy._state)
    for observation in observations * 2:
        act(policy, observation)
    assert states.nbytes(policy._state) == at_first


def test_another_number_of_rows_is_refused_within_an_episode(policy: Any, observations: Any):
    act(policy, observations[0])
    with pytest.raises(InvalidValueError, match=r"rows of the batch is 2; allowed: 3 until reset"):
        act(policy, rows_of(observations[1], slice(0, 2)))


def test_masks_of_another_length_are_refused(policy: Any, observations: Any):
    act(policy, observations[0])
    with pytest.raises(InvalidValueError, match=r"mask is 'torch.bool \[1\]'; allowed: bool \[3\]"):
        policy.reset_rows(torch.tensor([True]))


@pytest.mark.parametrize("kind", ["act"], indirect=True)
def test_a_plan_made_outside_select_action_writes_once(policy: Any, observations: Any):
    heard = readings(policy)
    policy.predict_action_chunk(observations[0])
    policy.predict_action_chunk(observations[1])
    assert len(heard) == 2 and not torch.equal(*heard)


@pytest.mark.parametrize("kind", ["act"], indirect=True)
def test_a_temporal_ensemble_has_no_rows_to_reset(settings: Any, observations: Any):
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    config = ACTConfig(**{**settings, "n_action_steps": 1, "temporal_ensemble_coeff": 0.01})
    policy = attach_memory(ACTPolicy(config), MemoryConfig(width=8))
    act(policy, observations[0])
    with pytest.raises(InvalidValueError, match="temporal_ensemble_coeff"):
        policy.reset_rows(torch.ones(ROWS, dtype=torch.bool))
