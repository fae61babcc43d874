"""The actor-critic: one step and many agree, and a start hides what came before."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import GRU, HCAM, Block, Memo, NoMemory, SequenceMemory
from engram.policies import ActorCritic, Inputs

T, B = 9, 3
MEMORIES: dict[str, Callable[[int], SequenceMemory[Any]]] = {
    "none": lambda width: Block(NoMemory(width)),
    "gru": lambda width: GRU(width, 6),
    "hcam": lambda width: HCAM(width, chunk=2, capacity=3, top_k=2, heads=2),
    "memo": lambda width: Memo(width, heads=2, segment=3, summary=2, capacity=2),
}
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(5),
    "vector": spaces.Box(-1, 1, (4,)),
    "dict": spaces.Dict({"card": spaces.Discrete(3), "state": spaces.Box(-1, 1, (2,))}),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-2, 1, (2,)),
}


def build(
    memory: str = "gru", observation: str = "vector", action: str = "discrete", **settings: Any
) -> ActorCritic:
    policy = ActorCritic(
        OBSERVATIONS[observation], ACTIONS[action], MEMORIES[memory], width=8, **settings
    ).double()
    for parameter in policy.parameters():  # a fresh head is close to indifferent
        torch.nn.init.normal_(parameter, std=0.4)
    return policy


def lived(policy: ActorCritic, observation: str = "vector", steps: int = T) -> Inputs:
    """Inputs of T steps with staggered starts, with actions of the policy's own space."""
    many = batch_space(OBSERVATIONS[observation], steps * B)
    many.seed(0)

    def tensors(sample: Any) -> Any:
        if isinstance(sample, dict):
            return {name: tensors(part) for name, part in sample.items()}
        return torch.as_tensor(sample).unflatten(0, (steps, B))

    features = torch.randn(steps, B, policy.memory.d_out, dtype=torch.float64)
    start = torch.rand(steps, B) < 0.25
    start[0, 0] = True
    return Inputs(
        tensors(many.sample()), policy.head(features).sample(), torch.randn(steps, B), start
    )


def at(inputs: Inputs, t: int) -> Inputs:
    def pick(part: Any) -> Any:
        return {k: v[t] for k, v in part.items()} if isinstance(part, dict) else part[t]

    return Inputs(*(pick(part) for part in inputs))


@torch.no_grad()
def answers(policy: ActorCritic, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Entropies and values of a sequence: what shows whether an input mattered."""
    output, _ = policy(inputs, policy.initial_state(B))
    return output.policy.entropy(), output.value


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(("observation", "action"), list(zip(OBSERVATIONS, ACTIONS, strict=True)))
@torch.no_grad()
def test_a_sequence_gives_what_its_steps_give(memory: str, observation: str, action: str) -> None:
    policy = build(memory, observation, action)
    inputs = lived(policy, observation)
    drawn = policy.head(torch.randn(T, B, policy.memory.d_out, dtype=torch.float64)).sample()
    whole, after = policy(inputs, policy.initial_state(B))
    state = policy.initial_state(B)
    for t in range(T):
        output, state = policy.step(at(inputs, t), state)
        torch.testing.assert_close(output.value, whole.value[t])
        torch.testing.assert_close(output.features, whole.features[t])
        torch.testing.assert_close(
            output.policy.log_prob(drawn[t]), whole.policy.log_prob(drawn)[t]
        )
    for t in range(T):  # slots that hold nothing may differ, what is read must not
        one, state = policy.step(at(inputs, t), state)
        other, after = policy.step(at(inputs, t), after)
        torch.testing.assert_close(one.value, other.value)


@torch.no_grad()
def test_the_state_goes_in_and_comes_out() -> None:
    policy = build()
    inputs = lived(policy)
    whole, _ = policy(inputs, policy.initial_state(B))
    _, state = policy(Inputs(*(part[:4] for part in inputs)), policy.initial_state(B))
    rest, _ = policy(Inputs(*(part[4:] for part in inputs)), state)
    torch.testing.assert_close(rest.value, whole.value[4:])


@pytest.mark.parametrize("action", ACTIONS)
def test_what_preceded_a_start_counts_for_nothing(action: str) -> None:
    policy = build("none", action=action)
    inputs = lived(policy)
    start = inputs.start
    nonsense = torch.tensor(float("nan") if inputs.action.is_floating_point() else -1)
    mask = start.view(T, B, *[1] * (inputs.action.ndim - 2))
    changed = inputs._replace(
        action=torch.where(mask, nonsense.to(inputs.action.dtype), inputs.action),
        reward=torch.where(start, torch.nan, inputs.reward),
    )
    for a, b in zip(answers(policy, inputs), answers(policy, changed), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("part", ["action", "reward"])
def test_the_previous_action_and_reward_count_except_at_a_start(part: str) -> None:
    policy = build("none")
    inputs = lived(policy)
    other = (inputs.action + 1) % 3 if part == "action" else inputs.reward + 1
    changed = answers(policy, inputs._replace(**{part: other}))[1] != answers(policy, inputs)[1]
    assert torch.equal(changed, ~inputs.start)


def test_previous_action_and_reward_can_be_left_out() -> None:
    policy = build("none", previous_action=False, previous_reward=False)
    inputs = lived(policy)
    blind = inputs._replace(action=torch.zeros_like(inputs.action), reward=inputs.reward * 0)
    for a, b in zip(answers(policy, inputs), answers(policy, blind), strict=True):
        assert torch.equal(a, b)


def test_no_action_is_not_the_first_action() -> None:
    policy = build("none")
    inputs = lived(policy)._replace(
        action=torch.zeros(T, B, dtype=torch.int64), reward=torch.zeros(T, B)
    )
    never, always = (
        answers(policy, inputs._replace(start=torch.full((T, B), flag)))[1]
        for flag in (False, True)
    )
    assert (never != always).all()


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_stands_for_the_previous_action_has_the_form_of_one(
    action: str, dtype: torch.dtype
) -> None:
    policy = build(action=action).to(dtype)
    output, _ = policy.step(at(lived(policy.double()), 0), policy.initial_state(B))
    drawn, stand_in = output.policy.sample(), policy.no_action(B)
    assert stand_in.shape == drawn.shape
    assert stand_in.dtype == drawn.dtype
    assert not stand_in.any()


def test_statistics_reach_the_encoder_only_where_asked_for() -> None:
    x = torch.randn(T, B, 4) * 5 + 3
    plain, normal = build("none"), build("none", normalize=True)
    before = [{k: v.clone() for k, v in policy.state_dict().items()} for policy in (plain, normal)]
    for policy, old, expected in zip((plain, normal), before, (0, 3), strict=True):
        policy.observe_statistics(x)
        new = policy.state_dict()
        assert sum(not torch.equal(new[k], old[k]) for k in old) == expected


def test_every_parameter_learns() -> None:
    policy = build("gru", "dict", "box", auxiliary={"reconstruct": 1.0})
    inputs = lived(policy, "dict")
    output, _ = policy(inputs, policy.initial_state(B))
    losses = policy.auxiliary(
        output.features,
        inputs.observation,
        policy.head.encode(inputs.action),
        inputs.start,
        torch.zeros_like(inputs.start),
    )
    total = output.value.sum() + output.policy.entropy().sum() + losses["reconstruct"]
    (total + output.policy.log_prob(inputs.action).sum()).backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())


@pytest.mark.parametrize(
    ("observation", "action", "named"),
    [
        (spaces.Text(3), spaces.Discrete(2), "observation space is Text"),
        (spaces.Discrete(2), spaces.MultiBinary(2), "action space is MultiBinary"),
        (spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (1,)), "action space is Box"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_spaces_are_refused_by_name(
    observation: spaces.Space[Any], action: spaces.Space[Any], named: str
) -> None:
    with pytest.raises(InvalidValueError, match=named):
        ActorCritic(observation, action, NoMemory)
