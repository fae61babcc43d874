"""Acting through SB3's predict: what the policy computes over the whole sequence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.policies import BasePolicy

from engram.agents.sb3_policy import MemoryPolicy
from engram.kernels.errors import EngramError, InvalidValueError
from engram.memory import state as states
from engram.memory.sequence import GRU, HCAM, LSTM, GTrXL, Memo, NoMemory, SequenceMemory, Window
from engram.policies import Inputs

MEMORIES: dict[str, Callable[[int], SequenceMemory[Any]]] = {
    "none": NoMemory,
    "gru": GRU,
    "lstm": LSTM,
    "window": lambda width: Window(width, window=4, heads=2),
    "hcam": lambda width: HCAM(width, chunk=3, capacity=3, top_k=2, heads=2),
    "memo": lambda width: Memo(width, heads=2, segment=5, summary=2, capacity=2, jitter=0.5),
    "gtrxl": lambda width: GTrXL(width, layers=1, heads=2, memory=4),
}
BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
PUSH = spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 1.0]))
MANY = spaces.MultiDiscrete([3, 2])


def policy(
    memory: str = "gru", observed: spaces.Space = BOX, acted: spaces.Space = MANY
) -> MemoryPolicy:
    built = MemoryPolicy(observed, acted, MEMORIES[memory], width=8)
    with torch.no_grad():  # at its initial scale a head prefers nothing
        for name, weight in built.actor_critic.head.named_parameters():
            weight.copy_(torch.randn_like(weight) if name.endswith("weight") else weight)
    return built


@pytest.mark.parametrize("acted", [MANY, PUSH, spaces.Discrete(4, start=0)])
@pytest.mark.parametrize("memory", MEMORIES)
def test_predicting_step_by_step_equals_the_policy_over_the_sequence(
    memory: str, acted: spaces.Space
):
    agent, steps, count = policy(memory, acted=acted), 14, 3
    x = torch.randn(steps, count, 3).clamp(-1, 1)
    start = torch.rand(steps, count) < 0.25  # staggered
    start[0] = True
    given, state, drawn = [], None, []
    for t in range(steps):
        action, state = agent.predict(x[t].numpy(), state, start[t].numpy(), deterministic=True)
        given.append(torch.as_tensor(action))
        drawn.append(state.action)
    before = torch.stack([torch.zeros_like(drawn[0]), *drawn[:-1]])
    inputs = Inputs(x, before, torch.zeros(steps, count), start)
    core = agent.actor_critic
    with torch.no_grad():
        output, last = core(inputs, core.initial_state(count))
    expected = core.head.to_env(output.policy.mode())
    assert torch.allclose(torch.stack(given).float(), expected.float(), atol=1e-5)
    if acted is PUSH and memory != "none":  # NoMemory reads always the same
        assert len(expected.unique()) > expected.numel() / 2
    # States may differ where nobody reads; what comes after them may not.
    assert state is not None
    nothing = torch.zeros(count)
    after = Inputs(x[0], state.action, nothing, nothing.bool())
    with torch.no_grad():
        value, wanted = (core.step(after, kept)[0].value for kept in (state.memory, last))
    assert torch.allclose(value, wanted, atol=1e-5)


@pytest.mark.parametrize("memory", ["gru", "hcam"])
def test_one_observation_is_answered_as_in_a_batch(memory: str):
    agent = policy(memory, acted=PUSH)
    x = np.random.default_rng(0).uniform(-1, 1, (6, 2, 3)).astype(np.float32)
    alone, together = None, None
    for t in range(6):
        one, alone = agent.predict(x[t, 1], alone, np.array([t == 3]), deterministic=True)
        both, together = agent.predict(x[t], together, np.array([False, t == 3]), True)
        assert one.shape == (2,) and both.shape == (2, 2)
        assert np.allclose(one, both[1], atol=1e-6)


def test_a_single_discrete_action_is_an_array_without_axes():
    action, _ = policy(acted=spaces.Discrete(4)).predict(np.zeros(3, dtype=np.float32))
    assert isinstance(action, np.ndarray) and action.shape == () and action.dtype == np.int64


def test_no_state_is_the_empty_memory_whatever_episode_start_says():
    agent, x = policy(), np.ones((2, 3), dtype=np.float32)
    _, used = agent.predict(x)
    expected = agent.predict(x, used, np.ones(2, dtype=bool), deterministic=True)
    for flags in (None, np.zeros(2), np.ones(2, dtype=bool)):
        action, state = agent.predict(x, None, flags, deterministic=True)
        assert (action == expected[0]).all()
        assert torch.equal(state.memory.h, expected[1].memory.h)


def test_the_previous_action_counts_and_is_forgotten_at_a_start():
    agent, x = policy("gru", acted=PUSH), np.ones((1, 3), dtype=np.float32)
    _, state = agent.predict(x, deterministic=True)
    other = state._replace(action=state.action + 1)
    act = lambda s, start: agent.predict(x, s, np.array([start]), True)[0]  # noqa: E731
    assert not np.allclose(act(state, False), act(other, False))
    assert (act(state, True) == act(other, True)).all()


@pytest.mark.parametrize("memory", MEMORIES)
def test_predict_writes_into_no_state(memory: str):
    agent, state = policy(memory), None
    for t in range(9):
        x = np.full((2, 3), t / 9, dtype=np.float32)
        before = None if state is None else states.snapshot(tuple(state))
        kept, (_, state) = state, agent.predict(x, state)
        if kept is not None:
            pairs = zip(states.leaves(tuple(kept)), states.leaves(before), strict=True)
            assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_draws_follow_the_policy_and_its_own_generator():
    agent = policy(acted=spaces.Discrete(2))
    torch.nn.init.zeros_(agent.actor_critic.head.logits.weight)  # type: ignore[arg-type]
    agent.actor_critic.head.logits.bias.data = torch.tensor([0.0, 1.0])  # type: ignore
    agent.generator = torch.Generator().manual_seed(1)
    before = torch.get_rng_state()
    actions, _ = agent.predict(np.zeros((4000, 3), dtype=np.float32))
    assert actions.mean() == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.03)
    assert torch.equal(torch.get_rng_state(), before)
    assert (agent.predict(np.zeros((9, 3), dtype=np.float32), deterministic=True)[0] == 1).all()


def test_images_are_taken_in_either_order_of_axes():
    image = spaces.Box(0, 255, (3, 36, 40), np.uint8)
    agent = policy(observed=spaces.Dict({"eye": image, "at": BOX}), acted=PUSH)
    eye, at = image.sample(), BOX.sample()
    first, _ = agent.predict({"eye": eye, "at": at}, deterministic=True)
    last, _ = agent.predict({"eye": np.moveaxis(eye, 0, -1), "at": at}, deterministic=True)
    dark, _ = agent.predict({"eye": 0 * eye, "at": at}, deterministic=True)
    assert first.shape == (2,) and (first == last).all() and (first != dark).any()


@pytest.mark.parametrize("observed", [spaces.Discrete(5), MANY, spaces.MultiBinary(4)])
def test_other_observations_come_alone_and_in_batches(observed: spaces.Space):
    agent = policy(observed=observed, acted=PUSH)
    rows = [observed.sample() for _ in range(3)]
    together, _ = agent.predict(np.stack(rows), deterministic=True)
    alone = [agent.predict(row, deterministic=True)[0] for row in rows]
    assert np.allclose(np.stack(alone), together, atol=1e-6)


def test_it_is_a_policy_of_sb3_that_acts_on_first_observations():
    agent = policy(acted=PUSH)
    x = torch.rand(4, 3)
    assert isinstance(agent, BasePolicy)
    expected, _ = agent.predict(x.numpy(), deterministic=True)
    with torch.no_grad():
        assert np.allclose(agent._predict(x, deterministic=True).numpy(), expected)


X = np.zeros((2, 3), dtype=np.float32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda a: a.predict((X, {})), r"observation is 'a tuple'; allowed: what an environment"),
        (lambda a: a.predict(X, (X, X)), r"state is 'tuple'; allowed: None, or what predict"),
        (lambda a: a.predict(X, a.predict(X[:1])[1]), r"state is 'that of 1 environments'; .* 2"),
        (lambda a: a.predict(X, None, np.ones(3)), r"episode_start is '3 flags'; allowed: 2, one"),
    ],
)
def test_what_predict_cannot_read_is_refused(call: Callable[..., Any], message: str):
    with pytest.raises(InvalidValueError, match=message):
        call(policy())


def test_sb3_says_what_shape_it_wants():
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        policy().predict(np.zeros((2, 4), dtype=np.float32))


def test_no_pickle_is_written_or_read(tmp_path: Any):
    with pytest.raises(EngramError, match="would write pickle; allowed: MemoryPPO"):
        policy().save(str(tmp_path / "policy"))
    with pytest.raises(EngramError, match="would read pickle; allowed: MemoryPPO"):
        MemoryPolicy.load(str(tmp_path / "policy"))
    assert not list(tmp_path.iterdir())
