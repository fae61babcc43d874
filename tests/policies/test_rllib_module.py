"""The RLlib module: padded sequences equal repeated steps, and nothing it is given changes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces

pytest.importorskip("ray.rllib", reason="needs the extra rllib", exc_type=ImportError)

from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.spaces.space_utils import batch as together
from ray.rllib.utils.torch_utils import convert_to_torch_tensor

from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from engram.memory.sequence import GRU, HCAM, LSTM, GTrXL, Memo, NoMemory, Window, stack
from engram.policies.rllib import MemoryModule
from engram.policies.rllib_arrays import decode, encode

T, B = 9, 4
LENGTHS = torch.tensor([9, 4, 1, 7])
MEMORIES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "none": (stack, {"layer": NoMemory}),
    "gru": (GRU, {"d_out": 6}),
    "lstm": (LSTM, {}),
    "gtrxl": (GTrXL, {"memory": 4, "heads": 2}),
    "window": (Window, {"window": 4, "heads": 2}),
    "hcam": (HCAM, {"chunk": 2, "capacity": 3, "heads": 2}),
    "memo": (Memo, {"heads": 2, "segment": 3, "summary": 2, "capacity": 2}),
}
VECTOR = spaces.Box(-1, 1, (3,))


def build(
    name: str = "hcam",
    observed: spaces.Space[Any] = VECTOR,
    acted: spaces.Space[Any] | None = None,
    **settings: Any,
) -> MemoryModule:
    kind, keywords = MEMORIES[name]
    config = {"memory": kind, "memory_kwargs": keywords, "width": 8, "max_seq_len": T, **settings}
    acted = spaces.Discrete(3) if acted is None else acted
    module = MemoryModule(observation_space=observed, action_space=acted, model_config=config)
    for parameter in module.parameters():  # a fresh head is close to indifferent
        torch.nn.init.normal_(parameter, std=0.4)
    return module


def batched(state: dict[str, np.ndarray], count: int = B) -> dict[str, torch.Tensor]:
    """The same state for several environments, as RLlib's connectors batch it."""
    return {k: torch.from_numpy(np.stack([v] * count)) for k, v in state.items()}


def padded(module: MemoryModule, **more: Any) -> dict[str, Any]:
    real = (torch.arange(T) < LENGTHS[:, None])[..., None]
    observation = torch.where(real, torch.randn(B, T, 3), 0.0)
    state = batched(module.get_initial_state())
    return {
        Columns.OBS: observation,
        Columns.STATE_IN: state,
        Columns.SEQ_LENS: LENGTHS,
        **more,
    }


@pytest.mark.parametrize("axis", ["without", "with"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_padded_sequences_equal_repeated_steps(memory: str, axis: str):
    module = build(memory)
    batch = padded(module)
    learned = module.forward_train(batch)
    values = module.compute_values(batch, learned[Columns.EMBEDDINGS])
    torch.testing.assert_close(values, module.compute_values(batch))
    state = batch[Columns.STATE_IN]
    for t in range(T):
        now = batch[Columns.OBS][:, t]
        now = now[:, None] if axis == "with" else now
        acted = module.forward_exploration({Columns.OBS: now, Columns.STATE_IN: state})
        value = module.compute_values({Columns.OBS: now, Columns.STATE_IN: state})
        state = acted[Columns.STATE_OUT]
        logits = acted[Columns.ACTION_DIST_INPUTS]
        if axis == "with":
            logits, value = logits[:, 0], value[:, 0]
        alive = t < LENGTHS
        wanted = learned[Columns.ACTION_DIST_INPUTS][alive, t]
        torch.testing.assert_close(logits[alive], wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(value[alive], values[alive, t], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_initial_state_says_that_an_episode_begins(memory: str):
    module = build(memory)
    policy = module.policy
    z = torch.randn(T, B, 8)
    start = torch.zeros(T, B, dtype=torch.bool)
    _, garbage = policy.memory(torch.randn(5, B, 8), policy.initial_state(B), start[:5])
    given = decode(batched(module.get_initial_state()), policy.initial_state(1))
    silent, _ = policy.memory(z, given, start)
    start[0] = True
    flagged, _ = policy.memory(z, garbage, start)
    torch.testing.assert_close(silent, flagged, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_padding_changes_neither_outputs_nor_gradients(memory: str):
    module = build(memory)
    batch = padded(module)
    real = torch.arange(T) < LENGTHS[:, None]
    results = []
    for filler in (0.0, float("nan"), 1e6):
        batch[Columns.OBS] = torch.where(real[..., None], batch[Columns.OBS], filler)
        learned = module.forward_train(batch)
        values = module.compute_values(batch, learned[Columns.EMBEDDINGS])
        module.zero_grad()
        (learned[Columns.ACTION_DIST_INPUTS][real].square().sum() + values[real].sum()).backward()
        gradients = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        results.append([learned[Columns.ACTION_DIST_INPUTS][real], values[real], *gradients])
        assert learned[Columns.ACTION_DIST_INPUTS].isfinite().all()
    for other in results[1:]:
        for mine, wanted in zip(other, results[0], strict=True):
            assert torch.equal(mine, wanted)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_batch_stays_as_it_was(memory: str):
    module = build(memory)
    batch = padded(module)
    before = states.snapshot((batch[Columns.OBS], batch[Columns.STATE_IN]))
    first = module.forward_train(batch)[Columns.ACTION_DIST_INPUTS]
    module.compute_values(batch)
    module.forward_inference({**batch, Columns.OBS: batch[Columns.OBS][:, 0]})
    assert torch.equal(module.forward_train(batch)[Columns.ACTION_DIST_INPUTS], first)
    assert torch.equal(batch[Columns.OBS], before[0])
    for name, kept in before[1].items():
        assert torch.equal(batch[Columns.STATE_IN][name], kept)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_initial_state_is_that_of_one_environment(memory: str):
    module = build(memory)
    state = module.get_initial_state()
    assert module.is_stateful()
    assert all(isinstance(part, np.ndarray) for part in state.values())
    like = module.policy.initial_state(1)
    assert sum(part.nbytes for part in state.values()) == states.nbytes(like)
    for mine, wanted in zip(decode(batched(state), like), like, strict=True):
        for (_, a), (_, b) in zip(states.leaves(mine), states.leaves(wanted), strict=True):
            assert a.shape == (B, *b.shape[1:]) and a.dtype == b.dtype and torch.all(a == b)


class Mixed(NamedTuple):
    real: torch.Tensor
    whole: torch.Tensor
    flags: tuple[torch.Tensor, torch.Tensor]
    precise: torch.Tensor


def test_rllib_leaves_every_bit_of_a_state():
    state = Mixed(
        torch.randn(B, 2, 3),
        torch.randint(-(2**63), 2**63 - 1, (B,)),
        (torch.rand(B, 2) < 0.5, torch.zeros(B, 0)),
        torch.randn(B, 2, dtype=torch.float64),
    )
    on_the_way = convert_to_numpy(encode(state))
    rows = [{k: v[i] for k, v in on_the_way.items()} for i in range(B)]
    back = decode(convert_to_torch_tensor(together(rows)), states.take(state, torch.tensor([0])))
    assert isinstance(back, Mixed)
    for (path, mine), (_, wanted) in zip(states.leaves(back), states.leaves(state), strict=True):
        assert mine.dtype == wanted.dtype and torch.equal(mine, wanted), path


def test_lengths_are_drawn_while_exploring_only():
    module = build("memo")
    assert not module.get_initial_state()["seed"].any()
    first, second = (module.draw_initial_state()["seed"] for _ in range(2))
    assert first.all() and (first != second).any()


OBSERVED = {
    "discrete": spaces.Discrete(4, start=1),
    "multi_discrete": spaces.MultiDiscrete([2, 3], start=[1, 5]),
    "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "dict": spaces.Dict({"a": spaces.Dict({"card": spaces.Discrete(2, start=3)}), "b": VECTOR}),
}


@pytest.mark.parametrize("name", OBSERVED)
def test_zeros_that_are_no_observation_may_pad(name: str):
    space = OBSERVED[name]
    module = build("gru", space)
    space.seed(0)

    def sequence(length: int) -> Any:
        drawn = [
            states.tree_map(torch.as_tensor, plain(space.sample())) for _ in range(max(length, 1))
        ]
        nothing = states.tree_map(torch.zeros_like, drawn[0])
        return states.tree_map(
            lambda *x: torch.stack(x), *drawn[:length], *[nothing] * (T - length)
        )

    def plain(sample: Any) -> Any:
        if isinstance(sample, dict):
            return {k: plain(v) for k, v in sample.items()}
        return torch.as_tensor(np.asarray(sample))

    rows = [sequence(int(length)) for length in LENGTHS]
    batch = padded(module, **{Columns.OBS: states.tree_map(lambda *x: torch.stack(x), *rows)})
    assert module.forward_train(batch)[Columns.ACTION_DIST_INPUTS].shape == (B, T, 3)
    now = states.tree_map(lambda x: x[:, 0], batch[Columns.OBS])
    acted = module.forward_inference({**batch, Columns.OBS: now})
    assert acted[Columns.ACTION_DIST_INPUTS].shape == (B, 3)


@pytest.mark.parametrize("acted", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3])], ids=str)
def test_rllib_draws_from_the_same_probabilities(acted: spaces.Space[Any]):
    module = build("gru", acted=acted)
    batch = {Columns.OBS: torch.randn(B, 3), Columns.STATE_IN: batched(module.get_initial_state())}
    answer = module.forward_exploration(batch)
    kind = module.get_exploration_action_dist_cls()
    theirs = kind.from_logits(answer[Columns.ACTION_DIST_INPUTS])
    z = module.policy.encoder(batch[Columns.OBS])
    still = torch.zeros(B, dtype=torch.bool)
    h, _ = module.policy.memory.step(z, module.policy.initial_state(B), still)
    ours = module.policy.head(h)
    action = ours.sample()
    assert action.shape == theirs.sample().shape
    torch.testing.assert_close(theirs.logp(action), ours.log_prob(action))
    torch.testing.assert_close(theirs.entropy(), ours.entropy())
    assert torch.equal(theirs.to_deterministic().sample(), ours.mode())


def test_box_actions_are_gaussian_around_the_mean_of_the_head():
    module = build("gru", acted=spaces.Box(-2, 1, (2,)))
    batch = {Columns.OBS: torch.randn(B, 3), Columns.STATE_IN: batched(module.get_initial_state())}
    logits = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    assert module.get_train_action_dist_cls() is TorchDiagGaussian
    assert logits.shape == (B, 4)
    head = module.policy.head
    torch.testing.assert_close(logits[:, 2:], head.log_std.clamp(-5, 2).expand(B, 2))


@pytest.mark.parametrize(
    "acted",
    [
        spaces.Discrete(3, start=1),
        spaces.MultiDiscrete([2, 3], start=[0, 1]),
        spaces.MultiDiscrete([[2, 3], [2, 3]]),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(0, 5, (2,), np.int64),
        spaces.Box(0, 1, (2, 2)),
        spaces.MultiBinary(2),
        spaces.Tuple([spaces.Discrete(2)]),
    ],
    ids=str,
)
def test_action_spaces_without_a_distribution_are_refused(acted: spaces.Space[Any]):
    with pytest.raises(InvalidValueError, match=r"(?s)action space is .*; allowed: Discrete"):
        build("gru", acted=acted)


@pytest.mark.parametrize("observed", [spaces.Tuple([VECTOR]), spaces.Text(3)], ids=str)
def test_observation_spaces_without_an_encoder_are_refused(observed: spaces.Space[Any]):
    with pytest.raises(InvalidValueError, match=r"observation space is .*; allowed: Dict"):
        build("gru", observed)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"memory": None}, r'model_config\["memory"\] is None'),
        ({"memory_kwargs": {"chunks": 3}}, "keywords that the memory takes .*chunks"),
        ({"memory_kwargs": 3}, r'model_config\["memory_kwargs"\] is 3'),
        ({"max_seq_len": 0}, r'model_config\["max_seq_len"\] is 0; allowed: a whole number'),
        ({"max_seq_len": 1.5}, r'model_config\["max_seq_len"\] is 1.5'),
        ({"width": 0}, "width is 0"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, Any], message: str):
    with pytest.raises(InvalidValueError, match=message) as caught:
        build("hcam", **settings)
    assert "\n" not in str(caught.value)


def test_a_module_without_settings_is_refused():
    make = partial(MemoryModule, observation_space=VECTOR, action_space=spaces.Discrete(2))
    with pytest.raises(InvalidValueError, match="model_config is None"):
        make(model_config=None)
