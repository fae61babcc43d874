"""A few processes that share the copies of an environment."""

import os
import signal
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from engram.envs.adapter import GymnasiumEnv
from engram.envs.workers import WorkerError, Workers
from engram.kernels.errors import InvalidValueError


class Counter(gymnasium.Env):
    """Counts steps from where its seed says, and ends at 3 of them."""

    observation_space = gymnasium.spaces.Dict(
        {
            "count": gymnasium.spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32),
            "process": gymnasium.spaces.Discrete(2**30),
        }
    )
    action_space = gymnasium.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.origin, self.steps = int(self.np_random.integers(1000)), 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        if action == 3:
            raise InvalidValueError("action", int(action), "0 to 2")
        if action == 2:
            raise ZeroDivisionError("nobody expected this")
        self.steps += 1
        return self.observe(), float(action), self.steps == 3, False, {"steps": self.steps}

    def observe(self) -> dict[str, Any]:
        count = np.array([self.origin, self.steps], dtype=np.float32)
        return {"count": count, "process": os.getpid()}


def run(**settings: Any) -> list[Any]:
    """Everything seen in six steps, but for the processes."""
    env = GymnasiumEnv(3, environment=Counter, measures=("steps", "absent"), seed=5, **settings)
    history: list[Any] = [env.reset()[0]["count"]]
    processes = set()
    for time in range(6):
        observation, *rest, info = env.step(np.array([0, 1, time % 2]))
        processes |= set(observation["process"].tolist())
        history += [observation["count"], *rest, info["final_obs"]["count"], info["start"]]
        history += [info["steps"], info["absent"]]
    mask = np.array([False, True, False])
    history.append(env.reset(options={"reset_mask": mask})[0]["count"])
    env.close()
    assert (len(processes), os.getpid() in processes) == (
        settings.get("processes") or 1,
        not settings,
    )
    return history


def test_a_few_processes_do_what_one_does():
    for alone, shared in zip(run(), run(processes=2), strict=True):
        assert torch.equal(alone.nan_to_num(-1), shared.nan_to_num(-1))
        assert alone.dtype == shared.dtype


@pytest.mark.slow
def test_what_a_copy_raises_arrives_and_a_reset_mends_it():
    env = Workers([Counter] * 2, 1)
    env.reset(seed=0)
    with pytest.raises(InvalidValueError, match="action is 3; allowed: 0 to 2"):
        env.step(np.array([0, 3]))
    with pytest.raises(WorkerError, match=r"worker 1 of 1: ZeroDivisionError: nobody"):
        env.step(np.array([0, 2]))
    observation, _ = env.reset(seed=0)
    assert observation["count"][:, 1].tolist() == [0, 0]
    assert env.step(np.array([0, 1]))[1].tolist() == [0, 1]

    (process,) = env.processes
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="worker 1 of 1: ended with exit code -9"):
        env.step(np.array([0, 0]))
    env.close()


def test_bad_numbers_of_processes_are_refused():
    with pytest.raises(InvalidValueError, match="processes is 3; allowed: 1 to 2"):
        GymnasiumEnv(2, environment=Counter, processes=3)
    with pytest.raises(InvalidValueError, match="processes is 2; allowed: 0 where asynchronous"):
        GymnasiumEnv(2, environment=Counter, processes=2, asynchronous=True)
