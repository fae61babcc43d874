"""An actor-critic with a memory, behind the surface of an SB3 policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from engram.agents.sb3_spaces import acted, arrange, native, observed
from engram.kernels.errors import EngramError, InvalidValueError
from engram.memory import state as states
from engram.memory.sequence.base import SequenceMemory
from engram.policies.actor_critic import ActorCritic, Inputs


class Carried(NamedTuple):
    """What `predict` returns as its state: what the next call needs of this one."""

    memory: Any
    action: Tensor
    """The action just taken, `[n, ...]`, as the head encodes actions."""


class MemoryPolicy(BasePolicy):
    """What `MemoryPPO` trains: `actor_critic`, in SB3's clothes.

    `predict` is not told rewards, so the previous reward is no input; the previous action is, and
    travels in the state.

    Args:
        observation_space: Of one environment, as SB3 has it.
        action_space: Of one environment.
        memory: Builds the memory, given its input width.
        width: Features of the code of an observation.
        normalize: Whether float vectors are scaled by running statistics.
        auxiliary: Weights of the auxiliary losses, as `ActorCritic` takes them.
    """

    optimizer: torch.optim.Optimizer  # type: ignore[assignment]
    """The learner's, where SB3 looks for it."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        memory: Callable[[int], SequenceMemory[Any]],
        *,
        width: int = 64,
        normalize: bool = False,
        auxiliary: dict[str, Any] | None = None,
    ):
        super().__init__(
            observation_space, action_space, squash_output=isinstance(action_space, spaces.Box)
        )
        self.actor_critic = ActorCritic(
            observed(observation_space),
            acted(action_space),
            memory,
            width=width,
            previous_reward=False,
            normalize=normalize,
            auxiliary=auxiliary,
        )
        self.generator: torch.Generator | None = None
        """Draws what `predict` draws; PyTorch's global generator unless given."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Act on one observation, or on one of each of n environments.

        Args:
            observation: As the environment returned it, `[...]` or `[n, ...]`; an image in either
                order of its axes.
            state: What the previous call returned, which is not written into; None is the empty
                memory.
            episode_start: Where this observation is the first of an episode, `[n]`, and the memory
                is emptied first; nowhere unless given. With an empty memory it has nothing to say.
            deterministic: Whether to take the likeliest action instead of drawing one.

        Returns:
            The action, `[...]` or `[n, ...]`, and the state for the next call.
        """
        if isinstance(observation, tuple):
            allowed = "what an environment observed (Gymnasium: `observation, info = env.reset()`)"
            raise InvalidValueError("observation", "a tuple", allowed)
        x, vectorized = self.obs_to_tensor(observation)
        with torch.no_grad():
            drawn, carried = self.act(x, state, episode_start, deterministic=deterministic)
            action = native(self.actor_critic.head.to_env(drawn), self.action_space)
        return action if vectorized else action.squeeze(axis=0), carried

    def act(
        self, x: Any, state: Any, episode_start: Any, *, deterministic: bool
    ) -> tuple[Tensor, Carried]:
        """Take one step; `x` is n observations of SB3's space, the action as the head drew it."""
        count = len(next(iter(x.values()))) if isinstance(x, dict) else len(x)
        start = self._starts(state, episode_start, count)
        if state is None:
            actor_critic = self.actor_critic
            state = Carried(actor_critic.initial_state(count), actor_critic.no_action(count))
        elif not isinstance(state, Carried):
            allowed = "None, or what predict returned"
            raise InvalidValueError("state", type(state).__name__, allowed)
        elif len(state.action) != count:
            allowed = f"that of {count}, as many as there are observations"
            raise InvalidValueError("state", f"that of {len(state.action)} environments", allowed)
        unknown = torch.zeros(count, device=self.device)
        inputs = Inputs(arrange(x, self.observation_space), state.action, unknown, start)
        output, memory = self.actor_critic.step(inputs, states.snapshot(state.memory))
        policy = output.policy
        drawn = policy.mode() if deterministic else policy.sample(self.generator)
        return drawn, Carried(memory, drawn)

    def _starts(self, state: Any, given: Any, count: int) -> Tensor:
        """Return where the memory is emptied: everywhere, if there is none."""
        flags = np.zeros(count, dtype=bool) if given is None else np.asarray(given).astype(bool)
        if flags.size != count:
            allowed = f"{count}, one per observation"
            raise InvalidValueError("episode_start", f"{flags.size} flags", allowed)
        start = torch.as_tensor(flags.reshape(count), device=self.device)
        return torch.ones_like(start) if state is None else start

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        """Act on first observations of episodes."""
        drawn, _ = self.act(observation, None, None, deterministic=deterministic)
        return self.actor_critic.head.to_env(drawn)

    def save(self, path: str) -> None:
        """Refuse: SB3 would write pickle."""
        raise EngramError(f"policy.save({path!r}) would write pickle; allowed: MemoryPPO.save")

    @classmethod
    def load(cls, path: str, device: Any = "auto") -> Any:
        """Refuse: SB3 would read pickle."""
        raise EngramError(f"policy.load({path!r}) would read pickle; allowed: MemoryPPO.load")
