"""An actor-critic around any sequence memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.base import SequenceMemory
from engram.policies.auxiliary import Auxiliary
from engram.policies.encoders import make_encoder, update_norms
from engram.policies.heads import Distribution, at_least_float32, make_head


class Inputs(NamedTuple):
    """What a policy sees at one step `[B, ...]` or at T steps `[T, B, ...]`."""

    observation: Any
    """A tensor or a dict of tensors."""
    action: Tensor
    """The previous action as the head drew it; anything where `start`."""
    reward: Tensor
    """The previous reward; anything where `start`."""
    start: Bool[Tensor, "*n"]


class Output(NamedTuple):
    """What a policy answers."""

    policy: Distribution
    value: Float[Tensor, "*n"]
    features: Float[Tensor, "*n D"]
    """What came out of the memory."""


class ActorCritic(nn.Module):
    """Encoder, memory, policy and value heads.

    z_t = enc(o_t) + W [a_{t−1}; r_{t−1}], h_t = memory(z)_t, π = head(h_t), V = w·h_t.
    The previous action and reward count as zero where a scope starts.

    Args:
        observation_space: Of one environment.
        action_space: Of one environment.
        memory: Builds the memory, given its input width.
        width: Features of the code z.
        previous_action: Whether a_{t−1} is an input.
        previous_reward: Whether r_{t−1} is an input.
        normalize: Whether float vectors are scaled by running statistics.
        auxiliary: Weights of the auxiliary losses, as `Auxiliary` takes them.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        memory: Callable[[int], SequenceMemory[Any]],
        *,
        width: int = 64,
        previous_action: bool = True,
        previous_reward: bool = True,
        normalize: bool = False,
        auxiliary: dict[str, Any] | None = None,
    ):
        super().__init__()
        if width < 1:
            raise InvalidValueError("policy.width", width, "1 or more")
        self.encoder = make_encoder(observation_space, width, normalize=normalize)
        self.memory = memory(width)
        self.head = make_head(action_space, self.memory.d_out)
        self.value = nn.Linear(self.memory.d_out, 1)
        self.from_action = nn.Linear(self.head.size, width, bias=False) if previous_action else None
        self.from_reward = nn.Linear(1, width, bias=False) if previous_reward else None
        self.auxiliary = Auxiliary(
            observation_space, self.memory.d_out, self.head.size, **(auxiliary or {})
        )

    def initial_state(self, batch: int) -> Any:
        """Return the memory's empty state."""
        return self.memory.initial_state(batch)

    def step(self, inputs: Inputs, state: Any) -> tuple[Output, Any]:
        """Act on one step of B environments."""
        h, state = self.memory.step(self._encode(inputs), state, inputs.start)
        return self._decide(h), state

    def forward(self, inputs: Inputs, state: Any) -> tuple[Output, Any]:
        """Evaluate T steps of B environments at once."""
        h, state = self.memory(self._encode(inputs), state, inputs.start)
        return self._decide(h), state

    def no_action(self, batch: int) -> Tensor:
        """Return what stands for the previous action before the first."""
        code = self.value.weight.new_zeros(batch, self.value.in_features)
        return torch.zeros_like(self.head(code).mode())

    def observe_statistics(
        self, observation: Any, over_learners: Callable[[Tensor], Tensor] = lambda mean: mean
    ) -> None:
        """Update running norms; call it between rollouts only.

        Args:
            observation: What a rollout saw.
            over_learners: Takes the mean over those who saw other rollouts, equally many steps.
        """
        update_norms(self.encoder, observation, over_learners)

    def _encode(self, inputs: Inputs) -> Tensor:
        z = self.encoder(inputs.observation)
        known = ~inputs.start[..., None]
        if self.from_action is not None:
            extra = inputs.action.ndim - inputs.start.ndim
            # Masked twice: what is no action cannot be encoded, and no action is not action 0.
            unknown = inputs.start.view(*inputs.start.shape, *[1] * extra)
            action = torch.where(unknown, 0, inputs.action)
            code = torch.where(known, self.head.encode(action), 0.0)
            z = z + self.from_action(code.to(z.dtype))
        if self.from_reward is not None:
            reward = torch.where(known, inputs.reward[..., None], 0.0)
            z = z + self.from_reward(reward.to(z.dtype))
        return z

    def _decide(self, h: Tensor) -> Output:
        return Output(self.head(h), at_least_float32(self.value(h)[..., 0]), h)
