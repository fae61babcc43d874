"""A training run: rollouts and updates until the budget is spent, resumable at every step."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engram.agents import checkpoint
from engram.agents.learners import Alone, Learners
from engram.agents.ppo import PPO, PPOSettings
from engram.agents.rollout import Acting, Collector, Rollout
from engram.envs.vector import Stream
from engram.kernels.errors import DataError, EngramError, InvalidValueError
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
    """One policy learning from whoever acts with it.

    Args:
        acting: Who acts: the stream of an environment, or workers elsewhere.
        policy: Who learns, on the device that learning happens on.
        settings: Of PPO.
        seed: The integer that every random choice of the run flows from.
        budget: Environment steps to spend, for schedules and `finished`.
        learners: Who else learns; every one has a policy and rollouts of its own, and the budget
            is that of all together.
    """

    def __init__(
        self,
        acting: Stream | Acting,
        policy: ActorCritic,
        settings: PPOSettings,
        *,
        seed: int,
        budget: int,
        learners: Learners | None = None,
    ):
        if budget < 1:
            raise InvalidValueError("budget", budget, "1 or more")
        self.policy, self.seed, self.budget = policy, seed, budget
        self.device = policy.value.weight.device
        self.learners = learners or Alone()
        self.learner = PPO(policy, settings, seed=seed, learners=learners)
        if isinstance(acting, Stream):
            acting = Collector(acting, policy, seed=seed, bfloat16=settings.bfloat16)
        self.collector = acting
        self.steps = 0
        self.seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.steps >= self.budget

    def iterate(self) -> Report:
        """Collect one rollout and learn from it.

        Returns:
            Steps and seconds so far; steps per second; seconds of this iteration and of its parts
            (where workers act meanwhile, these overlap); mean score and number of the episodes that
            ended; the mean of each of the environment's measurements over those; all losses.

        Raises:
            DivergedError: If a loss is not finite; what was saved before stays as it was.
        """
        began = time.perf_counter()
        settings = self.learner.settings
        rollout = self.collector.collect(settings.rollout, chunk=settings.chunk)
        collected = time.perf_counter()
        report = self.learner.update(rollout, progress=self.steps / self.budget)
        count = rollout.reward.numel() * self.learners.count
        for name, value in report.items():
            if not math.isfinite(value):
                raise DivergedError(name, value, self.steps + count)
        self.policy.observe_statistics(rollout.inputs.observation, self.learners.mean)
        measured = self._measure(rollout)
        ended = time.perf_counter()
        self.steps += count
        self.seconds += ended - began
        parts = {
            "iteration": ended - began,
            **self.collector.seconds,
            "learning": ended - collected,
        }
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_second": count / (ended - began),
            **{f"{name}_seconds": value for name, value in parts.items()},
            **measured,
            **self.collector.facts,
            **report,
        }

    def _measure(self, rollout: Rollout) -> Report:
        """Return the episodes that ended, over all learners: their number, and means."""
        ended = ~rollout.scores.isnan()
        values = {"score": rollout.scores} | {
            name: values for name, values in rollout.measurements.items() if values.ndim == 2
        }
        totals = [ended.sum().double()]
        for value in values.values():
            known = value[ended].double()
            totals += [known.nansum(), (~known.isnan()).sum().double()]
        shares = self.learners.mean(torch.stack(totals)).tolist()
        means = {
            name: shares[1 + 2 * i] / shares[2 + 2 * i] if shares[2 + 2 * i] else float("nan")
            for i, name in enumerate(values)
        }
        return {
            "score": means.pop("score"),
            "episodes": round(shares[0] * self.learners.count),
            **means,
        }

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Write everything that decides how the run goes on; of several learners, one writes.

        Where the environment cannot be copied (a simulator outside engram), it is left out, and
        with it the memory of its episodes.
        """
        acting = self.learners.gather(_on_host(self.collector.tensors()))
        if self.learners.rank == 0:
            facts = {**facts, "steps": self.steps, "seconds": self.seconds}
            facts["device"] = self.device.type
            checkpoint.write(path, self._learning() | _by_learner(acting), facts)
        self.learners.spread(None)  # nobody goes on before the file is there

    def load(self, path: Path) -> None:
        """Continue exactly where `save` left off.

        Where the environment could not be copied its episodes begin anew, and with them the
        memory; weights, optimiser, random states and step count continue all the same.

        Raises:
            DataError: If the file is damaged or belongs to another policy or environment; the run
                then stays as it was.
        """
        tensors, facts = checkpoint.read(path, self.device)
        made_on = facts.get("device")
        if made_on != self.device.type:  # each has random states of its own kind
            raise DataError(
                f"checkpoint {path}: device is {self.device.type!r}; allowed: as the run "
                f"began, {made_on!r}"
            )
        for name, kind in (("steps", int), ("seconds", float)):
            if not isinstance(facts.get(name), kind):
                raise DataError(
                    f"checkpoint {path}: {name} is {facts.get(name)!r}; allowed: {kind}"
                )
        learning = self._learning()
        acting = {name: tensor for name, tensor in tensors.items() if name not in learning}
        checkpoint.check(
            {name: tensors[name] for name in learning if name in tensors}, learning, path
        )
        if self.learners.count > 1:
            acting = checkpoint.part(acting, f"learner.{self.learners.rank}")
        self.collector.load(acting, steps=facts["steps"], source=path)
        self.steps, self.seconds = facts["steps"], facts["seconds"]
        self.policy.load_state_dict(checkpoint.part(tensors, "policy"))
        self._load_optimizer(checkpoint.part(tensors, "optimizer"))
        self.learner.generator.set_state(tensors["random.learn"].cpu())

    def _learning(self) -> dict[str, Tensor]:
        """Name every tensor of a checkpoint that all learners share."""
        tensors = {f"policy.{k}": v for k, v in self.policy.state_dict().items()}
        for index, moments in self.learner.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
        tensors["random.learn"] = self.learner.generator.get_state()
        return tensors

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        optimizer = self.learner.optimizer
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def _by_learner(acting: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Name what decides how acting goes on; of several learners, by their ranks."""
    if len(acting) == 1:
        return acting[0]
    return {
        f"learner.{rank}.{name}": tensor
        for rank, tensors in enumerate(acting)
        for name, tensor in tensors.items()
    }


def build_policy(seed: int, make: Any) -> Any:
    """Build a policy whose initial weights follow from `seed` alone; global state is restored."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the host
        torch.default_generator.manual_seed(seed)
        return make()
