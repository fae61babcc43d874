"""The policy: one memory in learning and acting, a queue per robot, guidance by its formula."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from engram.kernels.errors import DataError, InvalidValueError
from engram.memory import state as states
from engram.memory.sequence import GRU, Bank, OverStreams, PresentOnly
from engram.policies.action_scale import ActionScale
from engram.policies.denoising import Diffusion, Flow
from engram.policies.vla import VLA, ActingState, Remembered

B = 3
Make = Callable[..., Any]
MEMORIES: dict[str, Any] = {
    "bank": None,
    "bank_detached": partial(Bank, capacity=3, layers=1, heads=1, gradient_writes=0),
    "gru": partial(OverStreams, memory=lambda width: GRU(width, 6), width=8),
    "none": PresentOnly,
}


class Counting(Flow):
    """Draws 0.1, 0.11, 0.12, …, then 0.2, 0.21, …: every action of every chunk is told apart."""

    def __init__(self) -> None:
        super().__init__(1)
        self.draws: list[int] = []

    def draw(self, noise: Tensor, predict: Any) -> Tensor:
        predict(noise, 0)
        self.draws.append(len(noise))
        number = 0.01 * (10 * len(self.draws) + torch.arange(noise.shape[1]))
        return number[None, :, None].expand_as(noise).clone()


def moments(policy: VLA, count: int) -> Remembered:
    def tokens() -> Any:
        from engram.memory.sequence import Streams

        return Streams(
            torch.randn(count, *policy.perception.perceptual),
            torch.randn(count, *policy.perception.cognitive),
        )

    return Remembered(tokens(), tokens())


def begun(*rows: int, count: int = B) -> Tensor:
    start = torch.zeros(count, dtype=torch.bool)
    start[list(rows)] = True
    return start


@pytest.mark.parametrize("modulated", [False, True], ids=["context", "modulated"])
@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("denoising", [Diffusion, Flow])
def test_every_parameter_gets_a_gradient_at_the_first_step(
    denoising: Any,
    name: str,
    modulated: bool,
    small_vla: Make,
    sight_size: Make,
    random_sight: Make,
) -> None:
    expert = {"modulated": modulated, "drop": 0.5}
    policy = small_vla(sight_size(), MEMORIES[name], denoising=denoising(), expert=expert)
    start = torch.zeros(6, B, dtype=torch.bool)
    start[0] = True
    state = policy.memory.initial_state(B)
    remembered, _ = policy(random_sight(sight_size(), 6, B), state, start)
    flat = states.tree_map(lambda part: part.flatten(0, 1), remembered)
    policy.loss(flat, torch.rand(6 * B, 4, 3) - 0.5).mean().backward()
    for parameter_name, parameter in policy.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > (1e-10 if modulated else 1e-9), parameter_name
        # Adam divides by its ε of 1e-6 at least: what is far below learns nothing.
        if not modulated and "time_code" not in parameter_name:
            assert parameter.grad.abs().max() > 1e-7, parameter_name


@pytest.mark.parametrize("modulated", [False, True], ids=["context", "modulated"])
def test_the_memory_reaches_the_actions(modulated: bool, small_vla: Make, sight_size: Make) -> None:
    policy = small_vla(sight_size(), expert={"modulated": modulated})
    one = moments(policy, 4)
    other = one._replace(fused=moments(policy, 4).fused)
    a, b = (policy.draw(m, torch.Generator().manual_seed(0)) for m in (one, other))
    assert not torch.allclose(a, b, atol=1e-5)
    # In context the present is replaced, so it reaches actions through the memory alone.
    present = one._replace(present=moments(policy, 4).present)
    c = policy.draw(present, torch.Generator().manual_seed(0))
    assert torch.equal(a, c) is not modulated


@pytest.mark.parametrize("denoising", [Diffusion(), Flow()], ids=["diffusion", "flow"])
def test_the_loss_is_the_squared_error_of_the_denoising(
    denoising: Any, small_vla: Make, sight_size: Make
) -> None:
    policy = small_vla(sight_size(), denoising=denoising, expert={"drop": 0.0})
    known, action = moments(policy, 4), torch.rand(4, 4, 3) - 0.5
    loss = policy.loss(known, action, generator=torch.Generator().manual_seed(2))
    assert loss.shape == (4, 4)
    generator = torch.Generator().manual_seed(2)
    torch.rand(4, generator=generator)  # whom guidance hides
    noisy, time, target = denoising.disturb(policy.scale.normalize(action), generator)
    fused = policy.look(known.fused)
    condition = policy.expert.condition(fused.cognitive, fused.perceptual)
    guess = policy.expert(noisy, policy.expert.time_code(time), condition)
    torch.testing.assert_close(loss, (guess - target).square().mean(-1))


def test_repeats_are_the_mean_over_more_draws(small_vla: Make, sight_size: Make) -> None:
    policy = small_vla(sight_size(), expert={"drop": 0.0})
    known, action = moments(policy, 5), torch.rand(5, 4, 3) - 0.5
    loss = policy.loss(known, action, generator=torch.Generator().manual_seed(1), repeats=3)
    twice = states.tree_map(lambda part: part.repeat(3, 1, 1), known)
    each = policy.loss(twice, action.repeat(3, 1, 1), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss, (each[:5] + each[5:10] + each[10:]) / 3)


def test_actions_that_are_not_finite_never_become_a_loss(small_vla: Make, sight_size: Make) -> None:
    policy = small_vla(sight_size())
    action = torch.zeros(2, 4, 3)
    action[1, 2, 0] = float("nan")
    with pytest.raises(DataError, match=r"an action is \[nan, 0.0, 0.0\]; allowed: finite"):
        policy.loss(moments(policy, 2), action)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("denoising", [Diffusion, Flow])
def test_a_draw_begins_with_noise_of_the_temperature(
    denoising: Any, temperature: float, small_vla: Make, sight_size: Make
) -> None:
    begun: list[Tensor] = []

    class Begun(denoising):
        def draw(self, noise: Tensor, predict: Any) -> Tensor:
            begun.append(noise)
            return super().draw(noise, predict)

    policy = small_vla(sight_size(), denoising=Begun(2), temperature=temperature)
    drawn = [policy.draw(moments(policy, 2), torch.Generator().manual_seed(n)) for n in (4, 4, 5)]
    expected = temperature * torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(begun[0], expected)
    assert torch.equal(begun[0], begun[1])
    assert torch.equal(begun[0], begun[2]) is (temperature == 0)
    assert all(each.isfinite().all() for each in drawn)


@pytest.mark.parametrize("modulated", [False, True], ids=["context", "modulated"])
def test_guidance_goes_beyond_what_the_blind_branch_says(
    modulated: bool, small_vla: Make, sight_size: Make
) -> None:
    asked = []

    class Once(Flow):
        def draw(self, noise: Tensor, predict: Any) -> Tensor:
            asked.append((noise, predict(noise, 5)))
            return noise

    expert = {"modulated": modulated}
    policy = small_vla(sight_size(), guidance=1.5, denoising=Once(), expert=expert)
    known = moments(policy, 4)
    policy.draw(known, torch.Generator().manual_seed(0))
    ((noise, guided),) = asked
    fused = policy.look(known.fused)
    shown = known.present if modulated else fused
    blind = policy.expert.null.expand(4, 1, -1)
    code, branches = policy.expert.time_code(noise.new_full((1,), 0.5)), []
    for cognitive, recalled in ((shown.cognitive, fused.cognitive), (blind, blind)):
        memory = (fused.perceptual, recalled) if modulated else None
        condition = policy.expert.condition(cognitive, shown.perceptual, memory)
        branches.append(policy.expert(noise, code, condition))
    told, untold = branches
    torch.testing.assert_close(guided, untold + 1.5 * (told - untold))
    assert not torch.allclose(told, untold, atol=1e-5)


def test_drawn_actions_lie_within_the_quantiles(small_vla: Make, sight_size: Make) -> None:
    policy = small_vla(sight_size())
    with torch.no_grad():
        policy.expert.action_out.weight.mul_(1e3)
    drawn = policy.draw(moments(policy, 50))
    assert (drawn >= policy.scale.low).all() and (drawn <= policy.scale.high).all()
    assert (drawn == policy.scale.high).any() and (drawn == policy.scale.low).any()


@pytest.mark.parametrize("name", MEMORIES)
def test_acting_remembers_what_learning_remembers(
    name: str, small_vla: Make, sight_size: Make, random_sight: Make
) -> None:
    """The memory is written at every step, whether or not a chunk is drawn there."""
    policy = small_vla(sight_size(), MEMORIES[name]).double()
    sight = random_sight(sight_size(), 9, B)
    sight = states.tree_map(lambda p: p.double() if p.is_floating_point() else p, sight)
    start = torch.zeros(9, B, dtype=torch.bool)
    start[0] = start[4, 1] = True
    whole, after = policy(sight, policy.memory.initial_state(B), start)
    drawn: list[Any] = []
    draw = policy.draw

    def watched(known: Remembered, generator: Any) -> Tensor:
        drawn.append(known)
        return draw(known, generator)

    policy.draw = watched
    state, by_hand = policy.initial_state(B), policy.memory.initial_state(B)
    for t in range(9):
        now = states.tree_map(lambda part, t=t: part[t], sight)
        with torch.no_grad():
            _, state = policy.act(now, state, start[t])
            _, by_hand = policy.memory.step(policy.perception(now), by_hand, start[t])
        for (path, a), (_, b) in zip(
            states.leaves(state.memory), states.leaves(by_hand), strict=True
        ):
            assert torch.equal(a.nan_to_num(), b.nan_to_num()), (t, path)
    for (path, a), (_, b) in zip(states.leaves(state.memory), states.leaves(after), strict=True):
        torch.testing.assert_close(a.nan_to_num(), b.nan_to_num(), msg=path)
    # Rows 0 and 2 draw at 0, 2, 4, …; row 1 at 0, 2 and, begun anew, at 4, 6, 8.
    assert [len(known.fused.cognitive) for known in drawn] == [3] * 5
    for known, t in zip(drawn, (0, 2, 4, 6, 8), strict=True):
        for got, expected in zip(states.leaves(known), states.leaves(whole), strict=True):
            torch.testing.assert_close(got[1], expected[1][t], msg=f"{got[0]} at {t}")


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_what_left_the_memory_is_read_once_more(
    looks: int, small_vla: Make, sight_size: Make, random_sight: Make
) -> None:
    policy = small_vla(sight_size(), looks=looks)
    sight, start = random_sight(sight_size(), 4, B), torch.zeros(4, B, dtype=torch.bool)
    remembered, _ = policy(sight, policy.memory.initial_state(B), start)
    looked, left = policy.look(remembered.fused), remembered.fused
    assert torch.equal(looked.perceptual, left.perceptual)
    query, tokens = left.cognitive[2], left.perceptual[2]
    for look in policy.looks:
        query = look(query, tokens)
        other = look(query, tokens.flip(0))
        assert not torch.allclose(look(query, tokens), other)
        torch.testing.assert_close(look(query, tokens.flip(1)), look(query, tokens))
    torch.testing.assert_close(looked.cognitive[2], query)
    assert len(policy.looks) == looks
    seen = []
    policy.expert.condition = lambda cognitive, *parts: seen.append(cognitive) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        policy.draw(states.tree_map(lambda part: part[2], remembered))
    torch.testing.assert_close(seen[0], query)


def test_as_many_actions_of_a_chunk_are_executed_as_asked_for(
    small_vla: Make, sight_size: Make, random_sight: Make
) -> None:
    counting = Counting()
    policy = small_vla(sight_size(), chunk=4, execute=3, denoising=counting)
    state, start, found = policy.initial_state(B), begun(0, 1, 2), []
    for _ in range(7):
        action, state = policy.act(random_sight(sight_size(), B), state, start)
        found.append(policy.scale.normalize(action)[0, 0].item())
        start = begun()
    assert found == pytest.approx([0.1, 0.11, 0.12, 0.2, 0.21, 0.22, 0.3])
    assert counting.draws == [B, B, B]


def test_a_start_empties_queue_and_memory_of_its_row_alone(
    small_vla: Make, sight_size: Make, random_sight: Make
) -> None:
    counting = Counting()
    policy = small_vla(sight_size(), chunk=4, execute=4, denoising=counting)
    state, found = policy.initial_state(B), []
    for t in range(6):
        sight = random_sight(sight_size(), B)
        before = states.snapshot(state)
        start = begun(0, 1, 2) if t == 0 else begun(1) if t == 2 else begun()
        action, state = policy.act(sight, state, start)
        found.append([round(x, 3) for x in policy.scale.normalize(action)[:, 0].tolist()])
        if t == 2:
            _, new = policy.memory.step(
                policy.perception(sight), policy.memory.initial_state(B), begun(0, 1, 2)
            )
            _, old = policy.memory.step(policy.perception(sight), before.memory, begun())
            expected, actual = states.where(start, new, old), states.snapshot(state.memory)
            now = policy.perception(random_sight(sight_size(), B))
            reads = [policy.memory.step(now, m, begun())[0] for m in (actual, expected)]
            torch.testing.assert_close(*reads, atol=1e-5, rtol=1e-5)
    assert [row[0] for row in found] == [0.1, 0.11, 0.12, 0.13, 0.3, 0.31]
    assert [row[1] for row in found] == [0.1, 0.11, 0.2, 0.21, 0.22, 0.23]
    assert [row[2] for row in found] == [row[0] for row in found]
    assert counting.draws == [B, 1, 2], "a chunk is drawn for those that are due, and no others"


@pytest.mark.parametrize("name", MEMORIES)
def test_rows_are_independent(
    name: str, small_vla: Make, sight_size: Make, random_sight: Make
) -> None:
    policy = small_vla(sight_size(), MEMORIES[name])
    both, one = policy.initial_state(2), policy.initial_state(1)

    def quiet(noise: Tensor, predict: Any) -> Tensor:  # noise would differ between the batches
        return Flow(3).draw(noise * 0, predict)

    policy.denoising.draw = quiet
    for t in range(5):
        sight = random_sight(sight_size(), 2)
        start = torch.tensor([t == 0 or t == 3, t == 0])
        together, both = policy.act(sight, both, start)
        row = states.tree_map(lambda part: part[1:], sight)
        alone, one = policy.act(row, one, start[1:])
        torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MEMORIES)
def test_the_acting_state_never_grows(
    name: str, small_vla: Make, sight_size: Make, random_sight: Make
) -> None:
    policy = small_vla(sight_size(), MEMORIES[name])
    state, start = policy.initial_state(B), begun(0, 1, 2)
    size = states.nbytes(state)
    with torch.no_grad():
        for _ in range(30):
            _, state = policy.act(random_sight(sight_size(), B), state, start)
            assert states.nbytes(state) == size
            start = begun()
    assert all(len(leaf) == B for _, leaf in states.leaves(state))
    assert isinstance(state, ActingState) and state.place.dtype == torch.int64


def test_a_state_that_saw_nothing_draws_at_once(
    small_vla: Make, sight_size: Make, random_sight: Make
) -> None:
    counting = Counting()
    policy = small_vla(sight_size(), denoising=counting)
    policy.act(random_sight(sight_size(), B), policy.initial_state(B), begun())
    assert counting.draws == [B]


def test_the_same_generator_draws_the_same_actions(
    small_vla: Make, sight_size: Make, random_sight: Make
) -> None:
    policy = small_vla(sight_size())
    sight, start = random_sight(sight_size(), B), begun(0, 1, 2)
    actions = [
        policy.act(sight, policy.initial_state(B), start, torch.Generator().manual_seed(seed))[0]
        for seed in (4, 4, 5)
    ]
    assert torch.equal(actions[0], actions[1]) and not torch.equal(actions[0], actions[2])


@pytest.mark.parametrize("part", ["proprioception", "objects", "oracle"])
def test_numbers_that_are_none_are_refused_before_they_are_remembered(
    part: str, small_vla: Make, sight_size: Make, random_sight: Make
) -> None:
    sizes = sight_size(objects=(2, 3), oracle=2)
    policy, sight = small_vla(sizes), random_sight(sizes, B)
    getattr(sight, part).view(-1)[1] = float("nan")
    with pytest.raises(InvalidValueError, match=f"{part} is nan; allowed: finite numbers"):
        policy.act(sight, policy.initial_state(B), begun())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"execute": 0}, "execute is 0; allowed: 1 … chunk = 4"),
        ({"execute": 5}, "execute is 5; allowed: 1 … chunk = 4"),
        ({"looks": -1}, "looks is -1; allowed: 0 or more"),
        ({"heads": 5}, "heads is 5; allowed: divisors of cognitive = 12"),
        ({"heads": 0}, "heads is 0"),
        ({"guidance": 0.9}, r"guidance is 0\.9; allowed: 1 or more"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"temperature": -0.5}, r"temperature is -0\.5; allowed: finite, 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        (
            {"guidance": 1.5, "expert": {"drop": 0.0}},
            r"guidance is 1\.5; allowed: 1, as the expert's drop is 0",
        ),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(
    settings: dict[str, Any], message: str, small_vla: Make, sight_size: Make
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        small_vla(sight_size(), **settings)


def test_without_a_look_heads_do_not_matter(small_vla: Make, sight_size: Make) -> None:
    policy = small_vla(sight_size(), looks=0, heads=5)
    known = moments(policy, 2)
    assert torch.equal(policy.look(known.fused).cognitive, known.fused.cognitive)


def test_scales_travel_with_the_policy(small_vla: Make, sight_size: Make) -> None:
    policy, other = small_vla(sight_size()), small_vla(sight_size())
    policy.scale = ActionScale(torch.zeros(3), torch.ones(3))
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.scale.high, torch.ones(3))
