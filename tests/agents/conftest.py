"""What tests of several learners share; `engram` must not be imported here."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces


class Cue(gymnasium.Env):
    """One of two cues is shown at the first step and asked for `delay` steps later.

    Observations: 0 and 1 the cues, 2 nothing, 3 the question. The answer is worth 1 or 0, and
    every action 1 before the question costs `price`. A policy without memory scores 1/2, unless it
    sees its previous action and passes the cue on in that; at 2 / delay or more it does not pay.
    """

    observation_space = spaces.Discrete(4)
    action_space = spaces.Discrete(2)

    def __init__(self, delay: int = 4, price: float = 0.0):
        self.delay, self.price = delay, price

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.time, self.cue = 0, int(self.np_random.integers(2))
        return self.cue, {}

    def step(self, action: Any):
        self.time += 1
        if self.time > self.delay:
            return 2, float(action == self.cue), True, False, {}
        return (3 if self.time == self.delay else 2), -self.price * float(action), False, False, {}


class Drift(gymnasium.Env):
    """A deterministic walk of two floats that actions push, cut off after `limit` steps.

    It terminates where the first float leaves −1 … 1. The reward is the second float.
    """

    observation_space = spaces.Box(-5.0, 5.0, (2,), np.float32)
    action_space: spaces.Space[Any] = spaces.Box(
        np.array([-0.5, 0.0]), np.array([0.5, 1.0]), dtype=np.float64
    )

    def __init__(self, limit: int = 5, first: float = 0.0):
        self.limit, self.first = limit, first

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.time, self.place = 0, np.array([self.first, 0.5])
        return self.place.astype(np.float32), {}

    def step(self, action: Any):
        assert self.action_space.contains(action), action
        self.time += 1
        self.place = 0.9 * self.place + np.array([0.3, 0.1]) + np.asarray(action)
        ended = bool(abs(self.place[0]) > 1)
        late = self.time >= self.limit and not ended
        return self.place.astype(np.float32), float(self.place[1]), ended, late, {}


@pytest.fixture
def cue() -> type[gymnasium.Env]:
    """A task of memory."""
    return Cue


@pytest.fixture
def drift() -> type[gymnasium.Env]:
    """A walk that terminates or is truncated, without chance."""
    return Drift


def _demonstration(number: int, length: int, **parts: Any) -> Any:
    """A demonstration whose every number says which frame of which demonstration it is of."""
    import torch

    from engram.agents.imitation_frames import Demonstration
    from engram.policies.perception import Sight

    frame = 1000.0 * number + torch.arange(length)
    sight = Sight(
        {},
        frame[:, None] / 1000,
        torch.ones(length, 2, dtype=torch.int64),
        (frame[:, None, None] / 1000).expand(length, 1, 3).clone(),
        torch.zeros(length, 0),
    )
    whole = Demonstration(
        sight,
        torch.stack([frame, -frame], -1) / 5000,
        torch.full((length, 1), float("nan")),
        torch.zeros(length),
        torch.zeros(length),
        torch.zeros(length),
    )
    return whole._replace(**parts)


def _cued(number: int, *, shown: int = 1, gap: tuple[int, int] = (3, 6), asked: int = 3) -> Any:
    """An object tells a sign, vanishes, and after a gap the action has that sign."""
    import torch

    random = torch.Generator().manual_seed(number)
    sign = float(torch.randint(2, (), generator=random)) * 2 - 1
    wait, pause = (
        int(torch.randint(*span, (), generator=random)) for span in ((1, 4), (gap[0], gap[1] + 1))
    )
    length = wait + shown + pause + asked
    time = torch.arange(length)
    seen = ((time >= wait) & (time < wait + shown)).float()
    decision = (time >= wait + shown + pause).float()
    whole = _demonstration(0, length)
    objects = torch.stack([sign * seen, decision, seen], -1)[:, None]
    known = (seen + decision).cummax(0).values > 0
    cue = torch.where(known, sign, float("nan"))[:, None]
    felt = 0.1 * torch.sin(number + time)[:, None]  # moves, and says nothing of the sign
    sight = whole.sight._replace(objects=objects, proprioception=felt)
    action = torch.stack([sign * decision, decision - 0.5], -1)
    return whole._replace(sight=sight, action=action, cue=cue, shown=seen, decision=decision)


def _cloning(batches: Any, *, memory: Any = None, told: bool = False, **settings: Any) -> Any:
    """A run of cloning with a small policy, from batches of either kind of demonstrations."""
    from functools import partial

    import torch

    from engram.agents.imitation import Imitation, ImitationSettings
    from engram.memory.sequence import GRU, OverStreams
    from engram.policies.action_expert import ActionExpert
    from engram.policies.action_scale import ActionScale
    from engram.policies.denoising import Flow
    from engram.policies.foresight import Foresight
    from engram.policies.perception import Perception, SightSize
    from engram.policies.recollection import Recollection
    from engram.policies.vla import VLA

    past = settings.pop("past", 0.0)
    oracle = batches.episodes[0].sight.oracle.shape[1]
    sizes = SightSize((), 0, 1, 1, 2, (1, 3), oracle)
    torch.manual_seed(settings.pop("weights", 0))
    policy = VLA(
        Perception(sizes, perceptual=8, cognitive=16, features=16, heads=2),
        memory or partial(OverStreams, memory=lambda width: GRU(width, 16), width=16),
        partial(ActionExpert, width=16, depth=1, heads=2),
        ActionScale(-torch.ones(2), torch.ones(2)),
        chunk=batches.chunk,
        execute=1,
        denoising=Flow(5),
    )
    recollection = Recollection(policy.perception, 1, past=past, horizon=4, width=16)
    felt = torch.zeros(1), torch.ones(1)
    foresight = Foresight(policy.perception, felt, weight=settings.pop("foresight", 1.0), width=16)
    small = {"updates": 100, "warmup": 5, "moments": 16, "repeats": 1} | settings
    return Imitation(policy, recollection, foresight, batches, ImitationSettings(**small), seed=3)


@pytest.fixture
def demonstration() -> Any:
    """Makes demonstrations that number their frames."""
    return _demonstration


@pytest.fixture
def cued() -> Any:
    """Makes demonstrations of a task of memory."""
    return _cued


@pytest.fixture
def cloning() -> Any:
    """Makes runs of cloning."""
    return _cloning
