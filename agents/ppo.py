"""Proximal policy optimisation over chunks of sequences, for any memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from engram.agents.learners import Alone, Learners
from engram.agents.returns import generalized_advantages, normalize
from engram.agents.rollout import Rollout, mixed_precision
from engram.agents.seeds import derive
from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from engram.policies.actor_critic import ActorCritic, Inputs


@dataclass(frozen=True)
class PPOSettings:
    """Settings of PPO (Schulman et al. 2017, arXiv 1707.06347).

    Three lengths are separate: `rollout` (steps between updates), `chunk` (steps that gradients
    flow through) and that of the memory, which is the memory's own.
    """

    rollout: int = 128
    """Steps per environment between updates."""
    chunk: int = 64
    """Steps that gradients flow through; it divides `rollout`."""
    epochs: int = 4
    """Passes over a rollout."""
    minibatches: int = 4
    """Updates per pass; each takes a share of the chunks."""
    learning_rate: float = 1e-3
    """Adam's, at the beginning."""
    final_learning_rate: float | None = None
    """Adam's at the end of the budget, approached linearly; constant unless given."""
    discount: float = 0.99
    """γ."""
    trace: float = 0.95
    """λ of the advantage estimate."""
    clip: float = 0.2
    """How far the ratio of probabilities may leave 1 and still be rewarded."""
    entropy: float = 0.01
    """Weight of the entropy bonus, at the beginning."""
    final_entropy: float | None = None
    """Weight of the entropy bonus at the end of the budget; constant unless given."""
    value: float = 0.5
    """Weight of the value loss."""
    max_gradient: float = 0.5
    """Largest norm of the gradient."""
    normalize_advantage: bool = True
    """Whether advantages are normalised in each minibatch."""
    refresh: bool = False
    """Whether stored memory states are computed anew with the present weights before an epoch."""
    bfloat16: bool = False
    """Whether products run in bfloat16, acting and learning alike; made for CUDA."""
    compile: bool = False
    """Whether the policy is compiled by torch.compile."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for name in ("rollout", "chunk", "epochs", "minibatches"):
            seen = getattr(self, name)
            if not isinstance(seen, int) or seen < 1:
                raise InvalidValueError(f"agent.{name}", seen, "a whole number, 1 or more")
        if self.rollout % self.chunk:
            raise InvalidValueError(
                "agent.chunk", self.chunk, f"divisors of agent.rollout = {self.rollout}"
            )
        for name in ("discount", "trace"):
            self._check(name, lambda seen: 0 <= seen <= 1, "0 to 1")
        for name in ("learning_rate", "clip", "max_gradient"):
            self._check(name, lambda seen: seen > 0, "finite numbers above 0")
        for name in ("final_learning_rate", "entropy", "final_entropy", "value"):
            if getattr(self, name) is not None:
                self._check(name, lambda seen: seen >= 0, "finite numbers, 0 or more")

    def _check(self, name: str, good: Callable[[float], bool], allowed: str) -> None:
        seen = getattr(self, name)
        number = isinstance(seen, int | float) and math.isfinite(seen)
        if not number or not good(seen):
            raise InvalidValueError(f"agent.{name}", seen, allowed)


class Batch(NamedTuple):
    """n chunks of C steps, time first."""

    inputs: Inputs
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    ended: Tensor
    """Whether the action ended an episode."""
    state: Any


class PPO:
    """Updates an actor-critic from rollouts.

    Args:
        policy: Who learns; its parameters are on the device of the rollouts.
        settings: See `PPOSettings`.
        seed: Seed of minibatches and auxiliary draws.
        learners: Who else learns, each from rollouts of its own, equally many steps. Together they
            learn as one would from all of them, up to rounding and the grouping of minibatches:
            each takes the same share of every learner's chunks. (Auxiliary losses are averaged over
            learners, whatever number of steps counts in each.)
    """

    def __init__(
        self,
        policy: ActorCritic,
        settings: PPOSettings,
        *,
        seed: int,
        learners: Learners | None = None,
    ):
        self.policy, self.settings = policy, settings
        self.learners = learners or Alone()
        device = policy.value.weight.device
        self.optimizer = torch.optim.Adam(
            policy.parameters(), lr=settings.learning_rate, eps=1e-5, fused=True
        )
        for parameter in policy.parameters():  # so that every checkpoint has the same tensors
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self.generator = torch.Generator(device).manual_seed(derive(seed, "learn"))
        self.evaluate: Any = torch.compile(policy) if settings.compile else policy

    def update(self, rollout: Rollout, *, progress: float) -> dict[str, float]:
        """Learn from one rollout; return the mean of every loss.

        Args:
            rollout: What acting recorded.
            progress: Share of the budget that is spent, for the schedules.
        """
        settings = self.settings
        rate = _schedule(settings.learning_rate, settings.final_learning_rate, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        entropy_weight = _schedule(settings.entropy, settings.final_entropy, progress)
        totals: dict[str, Tensor] = {}
        updates = 0
        batch = chunked(rollout, self.advantages(rollout), settings.chunk)
        for epoch in range(settings.epochs):
            if settings.refresh and epoch:
                batch = batch._replace(state=self.refreshed(rollout))
            for part in self._minibatches(batch):
                losses = self._step(part, entropy_weight)
                updates += 1
                for name, loss in losses.items():
                    totals[name] = totals.get(name, torch.zeros_like(loss)) + loss
        means = self.learners.mean(torch.stack(list(totals.values())) / updates).tolist()
        return dict(zip(totals, means, strict=True))

    def advantages(self, rollout: Rollout) -> Tensor:
        """Estimate the advantage of every action, `[R, B]`.

        Returns end where memory does, at the end of a trial (Duan et al. 2016, arXiv 1611.02779):
        to the last action of its first episode, the next one is worth something.
        """
        return generalized_advantages(
            rollout.reward,
            rollout.value,
            rollout.last_value,
            rollout.terminated & rollout.restarted,
            rollout.truncated & rollout.restarted,
            rollout.final_value,
            discount=self.settings.discount,
            trace=self.settings.trace,
        )

    def refreshed(self, rollout: Rollout) -> Any:
        """Compute the states before all chunks but the first anew, with the present weights."""
        chunk = self.settings.chunk
        kept = [states.snapshot(rollout.states[0])]
        device = rollout.reward.device
        with torch.no_grad(), mixed_precision(device, enabled=self.settings.bfloat16):
            for first in range(0, len(rollout.reward) - chunk, chunk):
                inputs = states.tree_map(lambda x, f=first: x[f : f + chunk], rollout.inputs)
                _, state = self.policy(inputs, states.snapshot(kept[-1]))
                kept.append(state)
        return states.concatenate(kept)

    def loss(self, batch: Batch, entropy_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and its parts.

        L = E[max(−A ρ, −A clip(ρ, 1 ± ε))] + c_v ½ E[(V − R)²] − c_e E[H] + auxiliary losses.
        """
        settings = self.settings
        with mixed_precision(batch.advantage.device, enabled=settings.bfloat16):
            output, _ = self.evaluate(batch.inputs, batch.state)
            auxiliary = self._auxiliary(output.features, batch)
        log_ratio = output.policy.log_prob(batch.action) - batch.log_prob
        ratio = log_ratio.exp()
        advantage = batch.advantage
        if settings.normalize_advantage:
            advantage = normalize(advantage, self.learners.mean)
        clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        policy_loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
        value_loss = 0.5 * (output.value - batch.target).square().mean()
        entropy = output.policy.entropy().mean()
        total = policy_loss + settings.value * value_loss - entropy_weight * entropy
        parts = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        for name, loss in auxiliary.items():
            total = total + loss
            parts[name] = loss
        with torch.no_grad():
            parts["kl"] = (ratio - 1 - log_ratio).mean()
            parts["ratio_error"] = (ratio - 1).abs().amax()
        return total, parts

    def _auxiliary(self, features: Tensor, batch: Batch) -> dict[str, Tensor]:
        if not self.policy.auxiliary.active:
            return {}
        return self.policy.auxiliary(
            features,
            batch.inputs.observation,
            self.policy.head.encode(batch.action).to(features.dtype),
            batch.inputs.start,
            batch.ended,
            self.generator,
        )

    def _step(self, batch: Batch, entropy_weight: float) -> dict[str, Tensor]:
        total, parts = self.loss(batch, entropy_weight)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.learners.average(p.grad for p in self.policy.parameters() if p.grad is not None)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.max_gradient)
        self.optimizer.step()
        return {name: part.detach() for name, part in parts.items()} | {"gradient": norm}

    def _minibatches(self, batch: Batch) -> Iterator[Batch]:
        """Yield random shares of the chunks."""
        count = batch.log_prob.shape[1]
        device = batch.log_prob.device
        order = torch.randperm(count, generator=self.generator, device=device)
        for rows in order.tensor_split(min(self.settings.minibatches, count)):
            chosen = states.tree_map(lambda x, r=rows: x.index_select(1, r), tuple(batch[:-1]))
            yield Batch._make([*chosen, states.take(batch.state, rows)])


def chunked(rollout: Rollout, advantage: Tensor, chunk: int) -> Batch:
    """Cut a rollout of R steps and B environments into R/C · B chunks, chunk-major as states."""

    def cut(x: Tensor) -> Tensor:
        return rearrange(x, "(n C) B ... -> C (n B) ...", C=chunk)

    return Batch(
        states.tree_map(cut, rollout.inputs),
        cut(rollout.action),
        cut(rollout.log_prob),
        cut(rollout.value),
        cut(advantage),
        cut(advantage + rollout.value),
        cut(rollout.terminated | rollout.truncated),
        states.concatenate(rollout.states),
    )


def _schedule(first: float, last: float | None, progress: float) -> float:
    return first if last is None else first + (last - first) * min(progress, 1.0)
