"""Behaviour cloning with a memory: episodes in, a policy out, resumable at every update."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engram.agents import checkpoint
from engram.agents.imitation_batches import Batch, Batches, Frames
from engram.agents.seeds import derive
from engram.agents.training import DivergedError, Report
from engram.kernels.errors import DataError, InvalidValueError
from engram.memory import state as states
from engram.policies.foresight import Foresight
from engram.policies.recollection import Recollection
from engram.policies.vla import VLA, Remembered

PARTS = "policy", "average", "recollection", "foresight"
"""Modules of a run that a checkpoint holds."""


@dataclass(frozen=True)
class ImitationSettings:
    """How a policy is cloned."""

    updates: int = 2000
    """Gradient steps."""
    learning_rate: float = 1e-3
    """Highest; it rises over `warmup` updates and falls to a tenth on a cosine."""
    warmup: int = 100
    weight_decay: float = 1e-4
    clip: float = 1.0
    """Largest norm of a gradient."""
    moments: int = 128
    """Frames of a batch whose actions are learnt, different ones where there are as many; the
    memory reads all frames."""
    repeats: int = 2
    """Draws of noise per moment."""
    decision: float = 4.0
    """How much likelier a frame is drawn where the action depends on what is remembered."""
    ema: float = 0.99
    """Decay of the average of weights that acts in evaluation."""
    bfloat16: bool = False
    """Mixed precision in the losses; several times faster where the processor computes in it."""

    def __post_init__(self) -> None:
        """Check every number.

        Raises:
            InvalidValueError: If one cannot work.
        """
        for name in ("updates", "moments", "repeats"):
            if getattr(self, name) < 1:
                raise InvalidValueError(f"imitation.{name}", getattr(self, name), "1 or more")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidValueError(f"imitation.{name}", getattr(self, name), "above 0")
        for name in ("weight_decay", "decision", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidValueError(f"imitation.{name}", getattr(self, name), "0 or more")
        if not 0 <= self.ema < 1:
            raise InvalidValueError("imitation.ema", self.ema, "0 or more, less than 1")


class Imitation:
    """One policy that learns from demonstrations.

    Args:
        policy: Who learns.
        recollection: The losses that teach the memory.
        foresight: The loss that teaches to look for the goal.
        batches: Where demonstrations come from.
        settings: How.
        seed: The integer that every random choice of the run flows from.
    """

    def __init__(
        self,
        policy: VLA,
        recollection: Recollection,
        foresight: Foresight,
        batches: Batches,
        settings: ImitationSettings,
        *,
        seed: int,
    ):
        if batches.chunk != policy.chunk:
            raise InvalidValueError("chunk of the batches", batches.chunk, f"{policy.chunk}")
        self.policy, self.recollection, self.foresight = policy, recollection, foresight
        self.batches = batches
        self.settings, self.seed = settings, seed
        self.device = policy.scale.low.device
        # The average is of all but buffers, which never change.
        self.average = AveragedModel(policy, multi_avg_fn=average_unshared(settings.ema))
        self.average.requires_grad_(False)
        self.parameters = [
            parameter
            for part in (policy, recollection, foresight)
            for parameter in part.parameters()
        ]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            settings.learning_rate,
            weight_decay=settings.weight_decay,
            eps=1e-6,
            fused=True,  # hundreds of small tensors in one call: 15 ms instead of 28 on a core
        )
        self.generator = torch.Generator(self.device).manual_seed(derive(seed, "imitate"))
        self.memory = self._empty(batches.rows)
        self.updates = 0
        self.seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether all updates were made."""
        return self.updates >= self.settings.updates

    @property
    def actor(self) -> VLA:
        """The average of the policies so far: the one that acts."""
        policy = self.average.module
        assert isinstance(policy, VLA)
        return policy.eval()

    def iterate(self) -> Report:
        """Learn from one batch.

        Returns:
            Updates and seconds so far, frames of this update, and every loss.

        Raises:
            DivergedError: If a loss or a gradient is not finite; the weights, and what the memory
                carries, then stay as they were.
        """
        began = time.perf_counter()
        batch = self.batches.next()
        frames: Frames = states.tree_map(lambda part: part.to(self.device), batch.frames)
        self.policy.train()
        mixed = self.settings.bfloat16
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive(self.seed, f"dropout {self.updates}"))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
                losses, memory = self._losses(batch, frames)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        report = {name: float(loss.detach()) for name, loss in losses.items()}
        self._refuse_infinite(report)
        self.optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self._refuse_infinite({"gradient_norm": float(norm)})
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self.average.update_parameters(self.policy)
        self.memory = memory
        self.updates += 1
        self.seconds += time.perf_counter() - began
        return {
            "updates": self.updates,
            "seconds": self.seconds,
            "frames": frames.start.numel(),
            "gradient_norm": float(norm),
            **report,
        }

    def _refuse_infinite(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise DivergedError(name, value, self.updates)

    def _losses(self, batch: Batch, frames: Frames) -> tuple[dict[str, Tensor], Any]:
        """Return the losses of a batch, and the memory after it."""
        # A memory may write into the state that it is given: that of the run stays if this fails.
        memory = (
            states.snapshot(self.memory) if batch.carried else self._empty(frames.start.shape[1])
        )
        remembered, memory = self.policy(frames.sight, memory, frames.start)
        real = frames.real.flatten(0, 1)  # [T B, C]
        chance = real[:, 0] * (1 + self.settings.decision * frames.decision.flatten())
        wanted = self.settings.moments
        enough = wanted <= int(batch.frames.real[..., 0].sum())
        drawn = torch.multinomial(chance, wanted, replacement=not enough, generator=self.generator)
        moments: Remembered = states.tree_map(lambda x: x.flatten(0, 1)[drawn], remembered)
        action, real = frames.action.flatten(0, 1)[drawn], real[drawn]
        error = self.policy.loss(
            moments, action, generator=self.generator, repeats=self.settings.repeats
        )
        looked = self.policy.look(remembered.fused)  # what is acted on: both losses ask that
        recalled = self.recollection(
            looked,
            frames.sight,
            frames.cue,
            frames.start,
            self.generator,
            real=frames.real[..., 0],
            shown=frames.shown > 0,
        )
        action_loss = torch.where(real, error, 0.0).sum() / real.sum()
        # Before the decision the end cannot be known: it lies beyond the choice.
        asked = frames.real[..., 0] & (frames.decision > 0)
        foreseen = self.foresight(looked, frames.end, asked)
        return {"action": action_loss, **recalled, **foreseen}, states.snapshot(memory)

    def _empty(self, batch: int) -> Any:
        """Return the memory before an episode, with seeds for what it draws."""
        memory = self.policy.memory
        seeds = torch.randint(
            1, 2**62, (batch,), generator=self.generator, device=self.generator.device
        )
        return memory.randomize(memory.initial_state(batch), seeds)

    def _rate(self) -> float:
        settings = self.settings
        warm = min(1.0, (self.updates + 1) / max(settings.warmup, 1))
        share = min(1.0, self.updates / settings.updates)
        return settings.learning_rate * warm * (0.55 + 0.45 * math.cos(math.pi * share))

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Write everything that decides how the run goes on."""
        facts = {**facts, "updates": self.updates, "seconds": self.seconds}
        checkpoint.write(path, self._tensors(), facts)

    def load(self, path: Path) -> dict[str, Any]:
        """Continue exactly where `save` left off; return the facts of the file.

        Raises:
            DataError: If the file is damaged or belongs to another policy or other
                demonstrations; the run then stays as it was.
        """
        tensors, facts = checkpoint.read(path, self.device)
        for name, kind in (("updates", int), ("seconds", float)):
            if not isinstance(facts.get(name), kind):
                raise DataError(
                    f"checkpoint {path}: {name} is {facts.get(name)!r}; allowed: {kind}"
                )
        self._check(tensors, path)
        for name in PARTS:
            getattr(self, name).load_state_dict(checkpoint.part(tensors, name))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in checkpoint.part(tensors, "optimizer").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.generator.set_state(tensors["random"].cpu())
        self.batches.load(checkpoint.part(tensors, "batches"))
        self.memory = states.unflatten(checkpoint.part(tensors, "memory"), self.memory)
        self.updates, self.seconds = facts["updates"], facts["seconds"]
        return facts

    def _check(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Compare a checkpoint with this run before anything of it is used."""
        own = {name: getattr(self, name).state_dict() for name in PARTS}
        wanted = {f"{name}.{k}": v for name, each in own.items() for k, v in each.items()}
        found = {k: v for k, v in tensors.items() if k.partition(".")[0] in PARTS}
        checkpoint.check(found, wanted, path)
        found = checkpoint.part(tensors, "optimizer")
        begun = {name.split(".", 1)[0] for name in found}  # those that ever got a gradient
        wanted = {}
        for index, parameter in enumerate(self.parameters):
            if str(index) in begun:
                like = {"step": torch.tensor(0.0), "exp_avg": parameter, "exp_avg_sq": parameter}
                wanted |= {f"{index}.{name}": tensor for name, tensor in like.items()}
        checkpoint.check(found, wanted, path)
        checkpoint.check(checkpoint.part(tensors, "memory"), states.flatten(self.memory), path)
        random = {"random": tensors["random"]} if "random" in tensors else {}
        checkpoint.check(random, {"random": self.generator.get_state()}, path)
        self.batches.check(checkpoint.part(tensors, "batches"), path)

    def _tensors(self) -> dict[str, Tensor]:
        parts: dict[str, dict[str, Tensor]] = {
            **{name: getattr(self, name).state_dict() for name in PARTS},
            "batches": self.batches.tensors(),
            "memory": states.flatten(self.memory),
        }
        for index, moments in self.optimizer.state_dict()["state"].items():
            parts[f"optimizer.{index}"] = moments
        named = {f"{part}.{k}": v for part, each in parts.items() for k, v in each.items()}
        return named | {"random": self.generator.get_state()}


def average_unshared(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return the moving average of all weights but frozen ones, which a copy shares."""
    update = get_ema_multi_avg_fn(decay)

    def average(averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        pairs = zip(averages, weights, strict=True)
        apart = [(a, w) for a, w in pairs if a.data_ptr() != w.data_ptr()]
        if apart:
            update([a for a, _ in apart], [w for _, w in apart], count)

    return average
