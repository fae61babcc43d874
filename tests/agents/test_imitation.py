"""Cloning: what reaches the loss, what is carried, what acts, and that it can be interrupted."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engram.agents import checkpoint
from engram.agents.imitation import Imitation, ImitationSettings
from engram.agents.imitation_batches import Batch, Streaming
from engram.agents.imitation_frames import EveryFrame, JitteredFrames
from engram.agents.imitation_windows import Windows
from engram.agents.training import DivergedError
from engram.kernels.errors import DataError, InvalidValueError
from engram.memory import state as states
from engram.memory.sequence import HCAM, Bank, OverStreams, PresentOnly

Make = Callable[..., Any]
STILL = 1e-30
"""A learning rate that moves nothing."""


def streaming(cued: Make, *, seed: int = 0, first: int = 0) -> Streaming:
    episodes = [cued(i) for i in range(first, first + 9)]
    return Streaming(episodes, rows=4, steps=6, chunk=2, seed=seed)


def windows(cued: Make, *, seed: int = 0, frames: Any = None) -> Windows:
    episodes = [cued(i) for i in range(9)]
    return Windows(episodes, rows=4, frames=frames or EveryFrame(), chunk=2, seed=seed)


def losses(run: Imitation, count: int) -> list[dict[str, float]]:
    reports = [dict(run.iterate()) for _ in range(count)]
    for report in reports:
        report.pop("seconds")
    return reports


def everything(run: Imitation, *parts: str) -> dict[str, Tensor]:
    """All that decides how a run goes on, or some parts of it."""
    named = run._tensors().items()
    return {k: v.detach().clone() for k, v in named if not parts or k.split(".")[0] in parts}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("memory", [None, partial(Bank, capacity=3, layers=1)], ids=["gru", "bank"])
def test_a_stream_carries_memory_as_one_long_sequence_would(
    memory: Any, cued: Make, cloning: Make
) -> None:
    run = cloning(streaming(cued), memory=memory, learning_rate=STILL)
    other = streaming(cued)
    batches = [other.next() for _ in range(5)]
    losses(run, 5)
    whole = states.tree_map(lambda *parts: torch.cat(parts), *(b.frames for b in batches))
    _, expected = run.policy(whole.sight, run.policy.memory.initial_state(4), whole.start)
    for (path, a), (_, b) in zip(states.leaves(run.memory), states.leaves(expected), strict=True):
        torch.testing.assert_close(a.nan_to_num(), b.detach().nan_to_num(), msg=path)
        assert not a.requires_grad


class Replaced(Windows):
    """Batches whose padding is something else."""

    changed = True
    padded = 0

    def next(self) -> Batch:
        batch = super().next()
        padding = ~batch.frames.real[..., 0]
        self.padded += int(padding.sum())
        if not self.changed:
            return batch

        def replace(part: Tensor) -> Tensor:
            if not part.is_floating_point():
                return part
            mask = padding.view(*padding.shape, *[1] * (part.ndim - 2))
            return torch.where(mask, 0.7, part)

        frames = states.tree_map(replace, batch.frames)
        return Batch(frames, batch.carried)


def test_padding_never_reaches_a_loss(cued: Make, cloning: Make) -> None:
    found = []
    for changed in (False, True):
        episodes = [cued(i) for i in range(9)]
        batches = Replaced(episodes, rows=4, frames=EveryFrame(), chunk=2, seed=0)
        batches.changed = changed
        found.append(losses(cloning(batches, past=1.0), 4))
        assert batches.padded > 10
    assert found[0] == found[1]
    assert {"action", "cue", "recall", "goal"} <= found[0][0].keys()


def test_what_is_guessed_past_the_end_of_an_episode_is_not_judged(
    demonstration: Make, cloning: Make
) -> None:
    episodes = [demonstration(i, 4) for i in range(3)]
    found, past = [], []

    def judged(loss: Any, wrong: float, known: Any, action: Tensor, **rest: Any) -> Tensor:
        repeated = torch.zeros(action.shape[:2], dtype=torch.bool)  # as only padding is
        repeated[:, 1:] = action[:, 1:, 0] == action[:, :-1, 0]
        past.append(int(repeated.sum()))
        return torch.where(repeated, wrong, loss(known, action, **rest))

    for wrong in (0.0, 1e6):
        run = cloning(Streaming(episodes, rows=2, steps=5, chunk=3, seed=0))
        run.policy.loss = partial(judged, run.policy.loss, wrong)
        found.append(losses(run, 3))
    assert found[0] == found[1] and min(past) > 5


def test_the_end_is_asked_where_the_action_depends_on_memory_and_nowhere_else(
    cued: Make, cloning: Make
) -> None:
    run = cloning(windows(cued))
    batch = windows(cued).next().frames
    seen: list[Any] = []
    foresee, remember, look = run.foresight.forward, run.policy.forward, run.policy.look
    looks: list[tuple[Any, Any]] = []

    def remembered(*given: Any) -> Any:
        seen.append(remember(*given))
        return seen[0]

    def looked(fused: Any) -> Any:
        looks.append((fused, look(fused)))
        return looks[-1][1]

    def foreseen(*given: Any) -> Any:
        seen.append(given)
        return foresee(*given)

    run.policy.forward, run.policy.look, run.foresight.forward = remembered, looked, foreseen
    losses(run, 1)
    (known, _), (fused, end, asked) = seen
    ((left, wanted),) = [pair for pair in looks if pair[0].cognitive.ndim == 4]  # [T, B, M, E]
    assert left is known.fused and fused is wanted
    assert not torch.equal(fused.cognitive, known.fused.cognitive)
    assert torch.equal(end, batch.end) and not torch.equal(end, batch.sight.proprioception)
    expected = (batch.decision > 0) & batch.real[..., 0]
    assert torch.equal(asked, expected) and 0 < int(expected.sum()) < expected.numel()


def test_without_weight_the_end_is_not_asked(cued: Make, cloning: Make, tmp_path: Path) -> None:
    run, other = (cloning(streaming(cued), foresight=0.0) for _ in range(2))
    assert "goal" not in losses(run, 2)[-1]
    run.save(tmp_path / "run.safetensors", {})
    other.load(tmp_path / "run.safetensors")
    assert losses(run, 1) == losses(other, 1)
    asking = cloning(streaming(cued))
    with pytest.raises(DataError, match=r"foresight\.\S+ is missing; allowed"):
        asking.load(tmp_path / "run.safetensors")


def test_frames_that_depend_on_memory_are_drawn_more_often(cued: Make, cloning: Make) -> None:
    shares = {}
    for decision in (0.0, 4.0, 1e6):
        run = cloning(windows(cued), decision=decision, moments=4000, learning_rate=STILL)
        drawn = []
        loss = run.policy.loss

        def watched(
            remembered: Any, action: Tensor, loss: Any = loss, drawn: Any = drawn, **k: Any
        ):
            drawn.append(float((action[:, 0, 1] > 0).float().mean()))
            return loss(remembered, action, **k)

        run.policy.loss = watched
        losses(run, 1)
        (shares[decision],) = drawn
        frames = windows(cued).next().frames
        asked = float(frames.decision[frames.real[..., 0]].mean())
        expected = asked * (1 + decision) / (1 + asked * decision)
        assert shares[decision] == pytest.approx(expected, abs=0.04)
    assert shares[1e6] > 0.999


def test_no_moment_is_learnt_twice_where_there_are_enough(
    demonstration: Make, cloning: Make
) -> None:
    episodes = [demonstration(i, 7) for i in range(3)]
    for moments, distinct in ((21, True), (20, True), (22, False)):
        rounds = Windows(episodes, rows=3, frames=EveryFrame(), chunk=2, seed=0)
        run = cloning(rounds, moments=moments, learning_rate=STILL)
        rows = []
        loss = run.policy.loss

        def watched(remembered: Any, action: Tensor, loss: Any = loss, rows: Any = rows, **k: Any):
            rows.append(len(action.unique(dim=0)))
            return loss(remembered, action, **k)

        run.policy.loss = watched
        losses(run, 1)
        assert rows == [moments] if distinct else rows[0] < moments


def test_the_average_of_the_weights_is_what_acts(cued: Make, cloning: Make) -> None:
    run = cloning(streaming(cued), ema=0.5, learning_rate=0.01)
    name = "expert.action_out.weight"
    assert torch.equal(run.actor.state_dict()[name], run.policy.state_dict()[name])
    expected = None
    for _ in range(4):
        run.iterate()
        now = run.policy.state_dict()[name].detach().clone()
        expected = now if expected is None else 0.5 * expected + 0.5 * now
        torch.testing.assert_close(run.actor.state_dict()[name], expected)
    assert not torch.allclose(run.actor.state_dict()[name], run.policy.state_dict()[name])
    assert not run.actor.training and run.actor is not run.policy
    assert not any(parameter.requires_grad for parameter in run.actor.parameters())


def test_the_rate_rises_and_falls_to_a_tenth(cued: Make, cloning: Make) -> None:
    run = cloning(streaming(cued), updates=10, warmup=4, learning_rate=1.0)
    rates = []
    for update in range(11):
        run.updates = update
        rates.append(run._rate())

    def cosine(update: int) -> float:
        return 0.55 + 0.45 * math.cos(math.pi * update / 10)

    expected = [min(1, (u + 1) / 4) * cosine(u) for u in range(11)]
    assert rates == pytest.approx(expected) and rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("kind", [streaming, partial(windows, frames=JitteredFrames(4))])
def test_a_run_goes_on_bit_for_bit_where_it_was_saved(
    kind: Any, cued: Make, cloning: Make, tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    run = cloning(kind(cued), past=1.0)
    losses(run, 3)
    run.save(path, {"who": "me"})
    expected = losses(run, 4)
    other = cloning(kind(cued, seed=8), past=1.0, weights=5)
    losses(other, 1)
    assert other.load(path)["who"] == "me"
    assert other.updates == 3 and other.seconds > 0
    assert losses(other, 4) == expected
    assert not differing(everything(other), everything(run))


def test_a_run_goes_on_before_its_first_update(cued: Make, cloning: Make, tmp_path: Path) -> None:
    run, path = cloning(streaming(cued)), tmp_path / "run.safetensors"
    run.save(path, {})
    other = cloning(streaming(cued, seed=8), weights=5)
    other.load(path)
    assert losses(other, 2) == losses(run, 2)


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without(prefix: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors, facts = checkpoint.read(path)
        checkpoint.write(
            path, {k: v for k, v in tensors.items() if not k.startswith(prefix)}, facts
        )

    return change


def forgetful(path: Path) -> None:
    tensors, facts = checkpoint.read(path)
    checkpoint.write(path, tensors, {**facts, "updates": "3"})


def of_others(path: Path) -> None:
    tensors, facts = checkpoint.read(path)
    checkpoint.write(path, tensors | {"batches.lengths": tensors["batches.lengths"] + 1}, facts)


DAMAGE = {
    "a flipped bit": (damaged, "is damaged: its content does not match its checksum"),
    "cut short": (cut, "is damaged"),
    "gone": (Path.unlink, "does not exist"),
    "no policy": (without("policy.expert.null"), "expert.null is missing"),
    "no average": (without("average.n_averaged"), "n_averaged is missing"),
    "half an optimizer": (without("optimizer.0.exp_avg_sq"), "0.exp_avg_sq is missing"),
    "no memory": (without("memory."), "is missing"),
    "no noise": (without("random"), "random is missing"),
    "no frames": (without("batches.ahead"), "ahead is missing"),
    "no order": (without("batches.random"), "random is missing"),
    "no updates": (forgetful, "updates is '3'; allowed: <class 'int'>"),
    "other demonstrations": (of_others, "demonstrations are 9 of"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_checkpoint_that_cannot_go_on_leaves_the_run_as_it_was(
    name: str, cued: Make, cloning: Make, tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    run = cloning(streaming(cued))
    losses(run, 2)
    run.save(path, {})
    damage, message = DAMAGE[name]
    damage(path)
    other, control = (cloning(streaming(cued, seed=8), weights=5) for _ in range(2))
    losses(other, 1), losses(control, 1)
    with pytest.raises(DataError, match=message):
        other.load(path)
    assert not differing(everything(other), everything(control))
    assert losses(other, 2) == losses(control, 2)


def test_a_checkpoint_of_another_policy_is_refused(
    cued: Make, cloning: Make, tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    cloning(streaming(cued)).save(path, {})
    run = cloning(streaming(cued), memory=PresentOnly)
    before = everything(run)
    with pytest.raises(DataError, match="allowed: nothing of that name"):
        run.load(path)
    assert not differing(everything(run), before)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_divergence_is_an_error_that_leaves_everything_as_it_was(
    what: str, cued: Make, cloning: Make
) -> None:
    chunks = partial(HCAM, heads=2, chunk=2, capacity=8)  # writes into the state it is given
    over = partial(OverStreams, memory=chunks, width=16)
    run = cloning(streaming(cued), memory=over)
    losses(run, 2)
    if what == "loss":
        with torch.no_grad():
            run.policy.expert.action_out.bias.fill_(1e30)
        message = "action is inf after 2 steps"
    else:
        run.policy.expert.null.register_hook(lambda gradient: gradient * float("nan"))
        message = "gradient_norm is nan after 2 steps"
    parts = ("policy", "average", "optimizer", "memory")
    before = everything(run, *parts)
    with pytest.raises(DivergedError, match=message):
        for _ in range(20):  # the token is hidden now and then
            run.iterate() if what == "loss" else losses(run, 1)
    assert run.updates == 2 and not differing(everything(run, *parts), before)


def test_mixed_precision_trains_and_keeps_weights_and_memory_precise(
    cued: Make, cloning: Make
) -> None:
    run = cloning(streaming(cued), bfloat16=True, past=1.0, learning_rate=5e-3, updates=60)
    reports = losses(run, 60)
    first, last = (
        sum(r["cue"] + r["action"] for r in part) for part in (reports[:10], reports[-10:])
    )
    assert last < 0.8 * first
    exact = cloning(streaming(cued), past=1.0, learning_rate=5e-3, updates=60)
    assert losses(exact, 1)[0]["action"] != reports[0]["action"]
    dtypes = {t.dtype for t in run._tensors().values() if t.is_floating_point()}
    assert dtypes == {torch.float32}


def test_a_run_is_finished_after_its_updates(cued: Make, cloning: Make) -> None:
    run = cloning(streaming(cued), updates=2)
    assert not run.finished
    report = losses(run, 2)[-1]
    assert run.finished and report["updates"] == 2 and report["frames"] == 24


BAD = [("updates", 0), ("moments", 0), ("repeats", 0), ("ema", 1.0), ("ema", -0.1)]
BAD += [
    (name, bad) for name in ("learning_rate", "clip") for bad in (0.0, -1.0, math.inf, math.nan)
]
BAD += [(name, bad) for name in ("weight_decay", "decision") for bad in (-1.0, math.nan)]
BAD += [("warmup", -1)]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_settings_that_cannot_work_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidValueError, match=rf"imitation.{name} is {value}; allowed: "):
        ImitationSettings(**{name: value})
