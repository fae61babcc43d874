"""Auxiliary losses: decode observations from the memory's output.

Reward alone leaves associative tasks on a plateau, and a memory with detached writes learns
nothing to write without them (Lampinen et al. 2021, arXiv 2105.14039, figure 13; Hill et al.
2020, arXiv 2009.01719).
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from engram.policies.encoders import SYMBOLS, flatten_tail

SAMPLE = 64
"""Entries of a grid of symbols that one loss looks at: a grid has hundreds, each with many
logits, and a random share of them has the same mean at a fraction of the cost."""


class Decoder(nn.Module):
    """Predicts an observation; integers by cross-entropy, binary numbers by logistic loss.

    Other numbers are regressed by squared error, 8-bit images on the scale 0 … 1. The loss of a
    Dict is the mean of its parts' losses, that of an array the mean over its entries (of an array
    of symbols, over `SAMPLE` of them, drawn anew for every call and the same for the whole batch).

    Args:
        space: What is predicted.
        size: Features it is predicted from.
    """

    def __init__(self, space: spaces.Space[Any], size: int):
        super().__init__()
        self.space = space
        self.axes = len(space.shape or ())
        if isinstance(space, spaces.Dict):
            # A ModuleDict would refuse parts named "type", "robot.arm" and others.
            self.parts = nn.ModuleList(Decoder(part, size) for part in space.values())
            return
        if isinstance(space, spaces.Discrete):
            self.classes, self.entries = int(space.n), 1
        elif isinstance(space, spaces.MultiDiscrete):
            self.classes, self.entries = int(space.nvec.max()), int(space.nvec.size)
        elif isinstance(space, spaces.MultiBinary) or _is_binary(space):
            self.classes, self.entries = 2, int(np.prod(space.shape or (1,)))
        elif isinstance(space, spaces.Box):
            symbols = space.dtype == np.uint8 and int(space.high.max()) < SYMBOLS
            self.classes = int(space.high.max()) + 1 if symbols else 1
            self.entries = int(np.prod(space.shape or (1,)))
        else:
            raise InvalidValueError("observation space", space, "those that have an encoder")
        first = getattr(space, "start", 0)  # of Discrete and MultiDiscrete
        self.first: Tensor | None
        self.register_buffer(
            "first", torch.as_tensor(first) if np.any(first) else None, persistent=False
        )
        outputs = self.entries * (self.classes if self.classes > 2 else 1)
        self.out = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, outputs))

    def forward(
        self,
        code: Float[Tensor, "n D"],
        target: Any,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " n"]:
        """Return the loss of each prediction; `generator` draws the entries of a sample."""
        if isinstance(self.space, spaces.Dict):
            parts = zip(self.space, self.parts, strict=True)
            losses = [part(code, target[name], generator) for name, part in parts]
            return torch.stack(losses).mean(0)
        target = target if self.first is None else target - self.first
        target = flatten_tail(target, self.axes)
        if self.classes > 2:
            return self._symbols(code, target.long(), generator)
        guess = self.out(code).float()
        if self.classes == 1:
            image = isinstance(self.space, spaces.Box) and self.space.dtype == np.uint8
            scaled = target.float() / 255 if image else target.float()
            return (guess - scaled).square().mean(-1)
        # The same layer serves Discrete(2) and arrays of 0 and 1.
        loss = F.binary_cross_entropy_with_logits(guess, target.float(), reduction="none")
        return loss.mean(-1)

    def _symbols(
        self, code: Tensor, target: Tensor, generator: torch.Generator | None
    ) -> Float[Tensor, " n"]:
        """Cross-entropy over the entries, or over a sample of them."""
        last = self.out[-1]
        assert isinstance(last, nn.Linear)
        weight = last.weight.unflatten(0, (self.entries, self.classes))
        bias = last.bias.unflatten(0, (self.entries, self.classes))
        if self.entries > SAMPLE:
            order = torch.randperm(self.entries, generator=generator, device=code.device)
            drawn = order[:SAMPLE]
            weight, bias, target = weight[drawn], bias[drawn], target[:, drawn]
        hidden = self.out[:-1](code)
        logits = F.linear(hidden, weight.flatten(0, 1), bias.flatten()).float()
        logits = logits.unflatten(-1, bias.shape)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        return loss.unflatten(0, target.shape).mean(-1)


def _is_binary(space: spaces.Space[Any]) -> bool:
    """Whether a Box holds nothing but 0 and 1."""
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.integer):
        return False
    return bool((space.low == 0).all() and (space.high == 1).all())


class Auxiliary(nn.Module):
    """Three losses on the features h_t that come out of the memory.

    reconstruct: o_t from h_t. predict: o_{t+1} from (h_t, a_t), within an episode.
    recall: o_{t−δ} from (h_t, code of δ), δ drawn per step from the steps of the same scope that
    lie in the chunk: a past observation can only come out of the memory.

    Args:
        observation_space: What is decoded.
        width: Features of h.
        action_size: Numbers in an encoded action.
        reconstruct: Weight of the first loss.
        predict: Weight of the second.
        recall: Weight of the third.
        horizon: Largest δ.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        width: int,
        action_size: int,
        *,
        reconstruct: float = 0.0,
        predict: float = 0.0,
        recall: float = 0.0,
        horizon: int = 32,
    ):
        super().__init__()
        for name, value in (
            ("reconstruct", reconstruct),
            ("predict", predict),
            ("recall", recall),
        ):
            if not 0 <= value < math.inf:
                raise InvalidValueError(f"auxiliary.{name}", value, "finite numbers, 0 or more")
        if horizon < 1:
            raise InvalidValueError("auxiliary.horizon", horizon, "1 or more")
        self.weights = {"reconstruct": reconstruct, "predict": predict, "recall": recall}
        self.horizon = horizon
        if reconstruct:
            self.reconstruct = Decoder(observation_space, width)
        if predict:
            self.predict = Decoder(observation_space, width + action_size)
        if recall:
            self.delay = nn.Embedding(horizon + 1, width)
            self.recall = Decoder(observation_space, 2 * width)

    @property
    def active(self) -> bool:
        """Whether any loss has a weight."""
        return any(self.weights.values())

    def forward(
        self,
        features: Float[Tensor, "T n D"],
        observation: Any,
        action: Float[Tensor, "T n A"],
        start: Bool[Tensor, "T n"],
        ended: Bool[Tensor, "T n"],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return each active loss, weighted, as a scalar.

        Args:
            features: h_t.
            observation: o_t, `[T, n, ...]` or a dict of such.
            action: a_t, encoded.
            start: Where scopes begin.
            ended: Whether a_t ended an episode, so that o_{t+1} is no consequence of it; a scope
                may hold several episodes.
            generator: For δ, and for the entries of large grids.
        """
        losses = {}
        steps = len(start)
        if self.weights["reconstruct"]:
            each = self.reconstruct(
                features.flatten(0, 1), states.tree_map(_merge, observation), generator
            )
            losses["reconstruct"] = self.weights["reconstruct"] * each.mean()
        if self.weights["predict"] and steps > 1:
            code = torch.cat([features, action], -1)[:-1]
            later = states.tree_map(lambda part: _merge(part[1:]), observation)
            each = self.predict(code.flatten(0, 1), later, generator)
            follows = ~(start[1:] | ended[:-1])
            losses["predict"] = self.weights["predict"] * _mean(each, follows.flatten())
        if self.weights["recall"] and steps > 1:
            index = torch.arange(steps, device=start.device)[:, None]
            began = torch.where(start, index, 0).cummax(0).values
            room = (index - began).clamp(max=self.horizon)  # [T, n]
            draw = torch.rand(room.shape, device=room.device, generator=generator)
            delay = (1 + draw * room).long().clamp(max=self.horizon)
            delay = torch.minimum(delay, room)
            row = torch.arange(start.shape[1], device=start.device)
            past = states.tree_map(lambda part: _merge(part[index - delay, row]), observation)
            code = torch.cat([features, self.delay(delay)], -1)
            each = self.recall(code.flatten(0, 1), past, generator)
            losses["recall"] = self.weights["recall"] * _mean(each, room.flatten() > 0)
        return losses


def _merge(part: Tensor) -> Tensor:
    return part.flatten(0, 1)


def _mean(each: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid entries; the others never reach the loss."""
    return torch.where(valid, each, 0.0).sum() / valid.sum().clamp(min=1)
