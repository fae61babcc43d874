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
