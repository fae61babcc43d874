"""A training run: rollouts and updates until the budget is spent, resumable at every step."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engram.agents import checkpoint
from engram.agents.ppo import PPO, PPOSettings
from engram.agents.rollout import Collector, Cursor
from engram.agents.seeds import derive
from engram.envs.vector import BatchedEnv, Stream
from engram.kernels.errors import DataError, EngramError, InvalidValueError
from engram.memory import state as states
from engram.policies.actor_critic import ActorCritic

Report = dict[str, float | int]


class DivergedError(EngramError):
    """Learning left the finite numbers."""

    def __init__(self, name: str, value: float, steps: int):
        super().__init__(
            f"{name} is {value} after {steps:,} steps; allowed: finite numbers "
            "(a lower agent.learning_rate, bounded observations and rewards)"
        )


class Training:
    """One policy learning in one environment.

    Args:
        stream: The environment.
        policy: Who learns, on the stream's device.
        settings: Of PPO.
        seed: The integer that every random choice of the run flows from.
        budget: Environment steps to spend, for schedules and `finished`.
    """

    def __init__(
        self,
        stream: Stream,
        policy: ActorCritic,
        settings: PPOSettings,
        *,
        seed: int,
        budget: int,
    ):
        if budget < 1:
            raise InvalidValueError("budget", budget, "1 or more")
        self.stream, self.policy, self.seed, self.budget = stream, policy, seed, budget
        self.learner = PPO(policy, settings, seed=seed)
        self.collector = Collector(stream, policy, seed=seed, bfloat16=settings.bfloat16)
        self.steps = 0
        self.seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.steps >= self.budget

    def iterate(self) -> Report:
        """Collect one rollout and learn from it.

        Returns:
            Steps and seconds so far; steps per second; mean score and number of the episodes that
            ended; the mean of each of the environment's measurements over those; all losses.

        Raises:
            DivergedError: If a loss is not finite; what was saved before stays as it was.
        """
        began = time.perf_counter()
        settings = self.learner.settings
        rollout = self.collector.collect(settings.rollout, chunk=settings.chunk)
        report = self.learner.update(rollout, progress=self.steps / self.budget)
        for name, value in report.items():
            if not math.isfinite(value):
                raise DivergedError(name, value, self.steps + rollout.reward.numel())
        self.policy.observe_statistics(rollout.inputs.observation)
        ended = ~rollout.scores.isnan()
        count = int(ended.sum())
        elapsed = time.perf_counter() - began
        self.steps += rollout.reward.numel()
        self.seconds += elapsed
        score = float(rollout.scores[ended].mean()) if count else float("nan")
        measured = {
            name: float(values[ended].nanmean()) if count else float("nan")
            for name, values in rollout.measurements.items()
            if values.ndim == 2
        }
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_second": rollout.reward.numel() / elapsed,
            "score": score,
            "episodes": count,
            **measured,
            **report,
        }

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Write everything that decides how the run goes on.

        Where the environment cannot be copied (a simulator outside engram), it is left out, and
        with it the memory of its episodes.
        """
        facts = {**facts, "steps": self.steps, "seconds": self.seconds}
        facts["device"] = self.stream.device.type
        checkpoint.write(path, self._tensors(), facts)

    def load(self, path: Path) -> None:
        """Continue exactly where `save` left off.

        Where the environment could not be copied its episodes begin anew, and with them the
        memory; weights, optimiser, random states and step count continue all the same.

        Raises:
            DataError: If the file is damaged or belongs to another policy or environment; the run
                then stays as it was.
        """
        tensors, facts = checkpoint.read(path, self.stream.device)
        made_on = facts.get("device")
        if made_on != self.stream.device.type:  # each has random states of its own kind
            raise DataError(
                f"checkpoint {path}: device is {self.stream.device.type!r}; allowed: as the run "
                f"began, {made_on!r}"
            )
        checkpoint.check(tensors, self._tensors(), path)
        for name, kind in (("steps", int), ("seconds", float)):
            if not isinstance(facts.get(name), kind):
                raise DataError(
                    f"checkpoint {path}: {name} is {facts.get(name)!r}; allowed: {kind}"
                )
        self.steps, self.seconds = facts["steps"], facts["seconds"]
        self.policy.load_state_dict(checkpoint.part(tensors, "policy"))
        self._load_optimizer(checkpoint.part(tensors, "optimizer"))
        self.collector.generator.set_state(tensors["random.act"].cpu())
        self.learner.generator.set_state(tensors["random.learn"].cpu())
        if not isinstance(self.stream.env, BatchedEnv):
            # Not the seed of the beginning: its episodes have been seen.
            self.collector.begin(derive(self.seed, f"worlds after {self.steps} steps"))
            return
        self.stream.env.load(checkpoint.part(tensors, "env"))
        here = self.collector.cursor
        state = states.unflatten(checkpoint.part(tensors, "memory"), here.state)
        inputs = states.unflatten(checkpoint.part(tensors, "inputs"), here.inputs)
        self.collector.cursor = Cursor(inputs, state, tensors["cursor.score"])

    def _tensors(self) -> dict[str, Tensor]:
        """Name every tensor that a checkpoint holds."""
        tensors = {f"policy.{k}": v for k, v in self.policy.state_dict().items()}
        for index, moments in self.learner.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
        tensors["random.act"] = self.collector.generator.get_state()
        tensors["random.learn"] = self.learner.generator.get_state()
        if isinstance(self.stream.env, BatchedEnv):
            cursor = self.collector.cursor
            tensors |= {f"memory.{k}": v for k, v in states.flatten(cursor.state).items()}
            tensors |= {f"inputs.{k}": v for k, v in states.flatten(cursor.inputs).items()}
            tensors["cursor.score"] = cursor.score
            tensors |= {f"env.{k}": v for k, v in self.stream.env.save().items()}
        return tensors

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        optimizer = self.learner.optimizer
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def build_policy(seed: int, make: Any) -> Any:
    """Build a policy whose initial weights follow from `seed` alone; global state is restored."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the host
        torch.default_generator.manual_seed(seed)
        return make()
