"""Heads: distributions over actions for every action space that is supported."""

import abc
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
QUADRATURE = torch.as_tensor(np.stack([_NODES, _WEIGHTS / _WEIGHTS.sum()]))
"""Nodes and weights of an expectation under N(0, 1)."""


class Distribution(abc.ABC):
    """A batch of distributions over actions, `[*n]`."""

    @abc.abstractmethod
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one action each."""

    @abc.abstractmethod
    def mode(self) -> Tensor:
        """Return the most likely action of each (of a squashed Gaussian, most likely as u)."""

    @abc.abstractmethod
    def log_prob(self, action: Tensor) -> Float[Tensor, "*n"]:
        """Log-probability (density) of the actions."""

    @abc.abstractmethod
    def entropy(self) -> Float[Tensor, "*n"]:
        """Entropy in nats."""


class Categorical(Distribution):
    """One integer; p(a) = softmax(logits)_a."""

    def __init__(self, logits: Float[Tensor, "*n A"]):
        self.log_p = logits.log_softmax(-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw by the exponential race: argmax p / e, e ~ Exp(1); no host round trip."""
        race = torch.empty_like(self.log_p).exponential_(generator=generator)
        return (self.log_p.exp() / race).argmax(-1)

    def mode(self) -> Tensor:
        """Return the likeliest integer."""
        return self.log_p.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability of the integers."""
        return self.log_p.gather(-1, action[..., None])[..., 0]

    def entropy(self) -> Tensor:
        """−Σ p log p."""
        return -(self.log_p.exp() * self.log_p).sum(-1)


class MultiCategorical(Distribution):
    """Several independent integers, `[*n, parts]`."""

    def __init__(self, logits: Float[Tensor, "*n A"], sizes: list[int]):
        self.parts = [Categorical(part) for part in logits.split(sizes, dim=-1)]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw each part."""
        return torch.stack([part.sample(generator) for part in self.parts], -1)

    def mode(self) -> Tensor:
        """Return each part's likeliest integer."""
        return torch.stack([part.mode() for part in self.parts], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Sum of the parts' log-probabilities."""
        parts = zip(self.parts, action.unbind(-1), strict=True)
        return torch.stack([part.log_prob(a) for part, a in parts]).sum(0)

    def entropy(self) -> Tensor:
        """Sum of the parts' entropies."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)


class SquashedGaussian(Distribution):
    """a = tanh(u), u ~ N(μ, σ²): log p(a) = log N(u) − Σ log(1 − tanh² u).

    Actions are handed around as u, before the squashing: inverting tanh near its ends would lose
    the digits that the importance ratio needs.

    Args:
        mean: μ.
        log_std: log σ.
        quadrature: Nodes and weights for the entropy; `QUADRATURE`, wherever it is kept.
    """

    def __init__(
        self,
        mean: Float[Tensor, "*n A"],
        log_std: Float[Tensor, "*n A"],
        quadrature: Float[Tensor, "2 32"] = QUADRATURE,
    ):
        self.mean, self.log_std, self.quadrature = mean, log_std, quadrature

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw u."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """Return u at the Gaussian's mean."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of tanh(u)."""
        z = (action - self.mean) * (-self.log_std).exp()
        gaussian = -0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        # log(1 − tanh² u) = 2 (log 2 − u − softplus(−2u)), stable at both ends
        squash = 2 * (math.log(2) - action - F.softplus(-2 * action))
        return (gaussian - squash).sum(-1)

    def entropy(self) -> Tensor:
        """The Gaussian's entropy plus E[log |da/du|], by Gauss-Hermite quadrature.

        The expectation bounds the entropy by that of uniform actions. Its value at the mean would
        not: an entropy bonus would widen σ until every action lies at a bound.
        """
        node, weight = self.quadrature.to(self.mean)
        u = self.mean[..., None] + self.log_std.exp()[..., None] * node
        squash = (2 * (math.log(2) - u - F.softplus(-2 * u)) * weight).sum(-1)
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e) + squash).sum(-1)


class Head(nn.Module, abc.ABC):
    """Maps features to a distribution over the actions of one space."""

    @abc.abstractmethod
    def forward(self, features: Float[Tensor, "*n D"]) -> Distribution:
        """Return the policy."""

    @abc.abstractmethod
    def to_env(self, action: Tensor) -> Tensor:
        """Turn a drawn action into what the environment takes."""

    @abc.abstractmethod
    def encode(self, action: Tensor) -> Float[Tensor, "*n A"]:
        """Turn a drawn action into numbers a network can read."""

    size: int
    """How many numbers `encode` gives."""


class DiscreteHead(Head):
    """Discrete and MultiDiscrete actions.

    Args:
        width: Features.
        sizes: Number of values of each integer.
        first: Least value of each, as the environment counts.
        single: Whether the action is one integer without an axis of its own.
    """

    def __init__(self, width: int, sizes: list[int], first: list[int], *, single: bool):
        super().__init__()
        self.sizes, self.single, self.size = sizes, single, sum(sizes)
        self.logits = nn.Linear(width, self.size)
        nn.init.orthogonal_(self.logits.weight, 0.01)
        nn.init.zeros_(self.logits.bias)
        self.first: Tensor
        self.register_buffer("first", torch.tensor(first[0] if single else first), persistent=False)

    def forward(self, features: Float[Tensor, "*n D"]) -> Distribution:
        """Return the categorical policy."""
        logits = at_least_float32(self.logits(features))
        return Categorical(logits) if self.single else MultiCategorical(logits, self.sizes)

    def to_env(self, action: Tensor) -> Tensor:
        """Count as the environment does."""
        return action + self.first

    def encode(self, action: Tensor) -> Float[Tensor, "*n A"]:
        """Concatenated one-hot codes."""
        if self.single:
            return F.one_hot(action, self.size).float()
        parts = zip(action.unbind(-1), self.sizes, strict=True)
        return torch.cat([F.one_hot(part, size) for part, size in parts], -1).float()


class ContinuousHead(Head):
    """Bounded Box actions, by a squashed Gaussian with a deviation of its own per dimension.

    Args:
        width: Features.
        low: Least action.
        high: Greatest action.
    """

    def __init__(self, width: int, low: Shaped[Tensor, " A"], high: Shaped[Tensor, " A"]):
        super().__init__()
        self.size = len(low)
        self.mean = nn.Linear(width, self.size)
        nn.init.orthogonal_(self.mean.weight, 0.01)
        nn.init.zeros_(self.mean.bias)
        self.log_std = nn.Parameter(torch.full((self.size,), -0.5))
        self.low: Tensor
        self.high: Tensor
        # On the policy's device: a copy from the host, each time, would wait for it.
        self.quadrature: Tensor
        self.register_buffer("quadrature", QUADRATURE.float(), persistent=False)
        self.register_buffer("low", low.float(), persistent=False)
        self.register_buffer("high", high.float(), persistent=False)

    def forward(self, features: Float[Tensor, "*n D"]) -> Distribution:
        """Return the squashed Gaussian."""
        mean = at_least_float32(self.mean(features))
        log_std = self.log_std.clamp(-5, 2).expand_as(mean)
        return SquashedGaussian(mean, log_std, self.quadrature)

    def to_env(self, action: Tensor) -> Tensor:
        """Squash and scale to the bounds."""
        scaled = self.low + (action.tanh() + 1) / 2 * (self.high - self.low)
        # Rounding may leave the bounds by the last digit, which some environments refuse.
        return scaled.clamp(self.low, self.high).float()

    def encode(self, action: Tensor) -> Float[Tensor, "*n A"]:
        """The squashed action, in −1 … 1."""
        return action.tanh()


def at_least_float32(x: Tensor) -> Tensor:
    """Lift bfloat16 and float16 to float32: ratios of probabilities need the digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def make_head(space: spaces.Space[Any], width: int) -> Head:
    """Choose the head of an action space.

    Raises:
        InvalidValueError: If no head fits the space.
    """
    if isinstance(space, spaces.Discrete):
        return DiscreteHead(width, [int(space.n)], [int(space.start)], single=True)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        sizes, first = space.nvec.tolist(), space.start.tolist()
        return DiscreteHead(width, sizes, first, single=False)
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        return ContinuousHead(width, torch.as_tensor(space.low), torch.as_tensor(space.high))
    raise InvalidValueError("action space", space, "Discrete, MultiDiscrete [n], bounded Box [n]")
