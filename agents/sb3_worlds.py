"""An SB3 VecEnv as a Gymnasium VectorEnv with same-step autoreset, as `Stream` takes it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from engram.agents.sb3_spaces import acted, arrange, native, observed
from engram.kernels.errors import InvalidValueError

AfterStep = Callable[[dict[str, Any]], None]
"""What is called after every step, with `actions`, `new_obs`, `rewards`, `dones` and `infos`."""


class VecEnvWorlds(VectorEnv):
    """The worlds of a VecEnv, wrappers and all.

    An episode is truncated where `infos[i]["TimeLimit.truncated"]` says so and `dones[i]` too, and
    terminated where it ends otherwise. Observations are copied, for a VecEnv may reuse its arrays.

    Args:
        vec_env: The environment.
        after_step: See `AfterStep`; what it raises leaves `step`.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012
    truncates = True

    def __init__(self, vec_env: VecEnv, *, after_step: AfterStep | None = None):
        self.vec_env, self.after_step = vec_env, after_step
        self.num_envs = vec_env.num_envs
        self.single_observation_space = observed(vec_env.observation_space)
        self.single_action_space = acted(vec_env.action_space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.first: Any = None
        """What a `reset` of the VecEnv just returned; ours hands it out until a step is taken."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start every world anew, unless that has just been done; world i takes seed + i."""
        if options:
            raise InvalidValueError("options", options, "None (VecEnv.set_options takes them)")
        first = self.first
        if first is None:
            if seed is not None:
                self.vec_env.seed(seed)
            first = self.vec_env.reset()
        return self._tensors(first), {}

    def step(self, actions: np.ndarray) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Act in every world; those that end restart in the same call."""
        self.first = None
        sent = native(actions, self.vec_env.action_space)
        seen, rewards, dones, infos = self.vec_env.step(sent)
        observation = self._tensors(seen)
        ended = torch.tensor(dones, dtype=torch.bool)
        limited = [bool(info.get("TimeLimit.truncated", False)) for info in infos]
        truncated = ended & torch.tensor(limited)
        result = (
            observation,
            torch.tensor(rewards, dtype=torch.float32),
            ended & ~truncated,
            truncated,
            {"final_obs": self._final(observation, infos, ended, truncated)},
        )
        if self.after_step is not None:
            told = {"actions": sent, "clipped_actions": sent, "new_obs": seen}
            self.after_step({**told, "rewards": rewards, "dones": dones, "infos": infos})
        return result

    def close_extras(self, **kwargs: Any) -> None:
        """Close the VecEnv."""
        self.vec_env.close()

    def _final(
        self, observation: Any, infos: Sequence[dict[str, Any]], ended: Tensor, truncated: Tensor
    ) -> Any:
        """Return the observations with those rows replaced whose episode just ended."""
        rows = ended.nonzero().flatten().tolist()
        if not rows:
            return observation
        whole = observation if isinstance(observation, dict) else {"": observation}
        final = {name: part.clone() for name, part in whole.items()}
        for row in rows:
            last = infos[row].get("terminal_observation")
            if last is None:
                if truncated[row]:
                    allowed = "the last observation of an episode that was truncated"
                    raise InvalidValueError(f"infos[{row}]['terminal_observation']", None, allowed)
                continue
            parts = self._tensors(last, lead=(1,))
            for name, part in (parts if isinstance(parts, dict) else {"": parts}).items():
                final[name][row] = part[0]
        return final if isinstance(observation, dict) else final[""]

    def _tensors(self, observation: Any, *, lead: tuple[int, ...] = ()) -> Any:
        """Copy arrays into tensors of the space that policies see, `lead` put before their axes."""

        def copy(array: Any) -> Tensor:
            array = np.array(array, order="C")
            return torch.from_numpy(array.reshape(*lead, *array.shape))

        if isinstance(observation, dict):
            copied: Any = {name: copy(part) for name, part in observation.items()}
        else:
            copied = copy(observation)
        return arrange(copied, self.vec_env.observation_space)
