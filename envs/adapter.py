"""Any Gymnasium environment as a batch of same-step autoreset worlds with torch observations."""

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from engram.envs.processes import without_sigint
from engram.envs.vector import Observation, stack_final
from engram.envs.workers import Workers
from engram.kernels.errors import EngramError, InvalidValueError, is_whole


class UnknownEnvironmentError(EngramError, LookupError):
    """No environment is registered under an id."""

    def __init__(self, seen: str):
        registered = {key.lower(): key for key in gymnasium.registry}
        name = seen.rpartition(":")[2].lower()
        close = difflib.get_close_matches(name, registered, n=4)
        hint = ", ".join(registered[key] for key in close) or "none is close"
        super().__init__(f"environment {seen!r} is not registered; close matches: {hint}")


class UnsupportedSpaceError(EngramError, TypeError):
    """A space that policies and encoders do not take."""

    def __init__(self, role: str, seen: spaces.Space, allowed: str):
        super().__init__(f"{role} is {seen}; allowed: {allowed}")


class GymnasiumEnv(gymnasium.vector.VectorEnv):
    """Runs N copies of a Gymnasium environment, in this process, in a few or one process each.

    Observations, rewards and flags are torch tensors; `info` follows `BatchedEnv`: `final_obs` has
    every row filled, and each name in `measures` is `[N]` float32. float64 observations become
    float32. `info["start"]` marks the first observation of a trial of `episodes_per_trial`
    episodes, while terminated and truncated mark each episode. What the episodes of a trial have
    in common is up to the environment.

    Args:
        num_envs: Number of copies N.
        environment: An id (`"CartPole-v1"`, or `"module:id"` to import the module that registers
            it), or a callable that returns an environment.
        settings: Keywords for `gymnasium.make` or the callable.
        asynchronous: Whether each copy has a process of its own. Processes are spawned, so a
            script must guard its entry with `if __name__ == "__main__"`.
        processes: How many processes share the copies instead; 0 for none.
        episodes_per_trial: Episodes that memory spans.
        measures: Numbers in the environment's own info to report; NaN where absent.
        device: Where the tensors handed out live; the copies run on the host.
        seed: Seed of the first reset.

    Raises:
        UnknownEnvironmentError: If no environment has that id.
        UnsupportedSpaceError: If observations are not Discrete, MultiDiscrete, Box or a Dict of
            these, or actions not Discrete, MultiDiscrete or Box.
    """

    truncates = True

    def __init__(
        self,
        num_envs: int,
        *,
        environment: str | Callable[..., gymnasium.Env],
        settings: Mapping[str, Any] | None = None,
        asynchronous: bool = False,
        processes: int = 0,
        episodes_per_trial: int = 1,
        measures: Sequence[str] = (),
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        if not is_whole(num_envs) or num_envs < 1:
            raise InvalidValueError("num_envs", num_envs, "1 or more, a whole number")
        if episodes_per_trial < 1:
            raise InvalidValueError("episodes_per_trial", episodes_per_trial, "1 or more")
        make = (
            partial(gymnasium.make, _find(environment))
            if isinstance(environment, str)
            else environment
        )
        copies = [partial(make, **(settings or {}))] * num_envs
        if asynchronous and processes:
            raise InvalidValueError("processes", processes, "0 where asynchronous is true")
        if processes:
            self.vector = Workers(copies, processes, measures=measures)
        elif asynchronous:
            # A fork would copy torch's threads in whatever state they are.
            with without_sigint():
                self.vector = AsyncVectorEnv(
                    copies, autoreset_mode=AutoresetMode.SAME_STEP, context="spawn"
                )
        else:
            self.vector = SyncVectorEnv(copies, autoreset_mode=AutoresetMode.SAME_STEP)
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.metadata = {**self.vector.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = _observed(self.vector.single_observation_space)
        self.single_action_space = _check_action(self.vector.single_action_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = self.vector.action_space
        self.episodes_per_trial = episodes_per_trial
        self.measures = tuple(measures)
        self.seed: int | None = seed
        self.episodes = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start every copy anew, and with it its trial; `reset_mask` in options names a part."""
        seed, self.seed = self.seed if seed is None else seed, None
        if isinstance(seed, int):
            # Gymnasium seeds copy i with seed + i, so that nearby seeds would share worlds.
            seed = np.random.SeedSequence(seed).generate_state(self.num_envs).tolist()
        options = dict(options) if options else None  # Gymnasium takes the mask out of it
        mask = torch.ones(self.num_envs, dtype=torch.bool)
        if options and "reset_mask" in options:
            mask = torch.as_tensor(options["reset_mask"])
            options["reset_mask"] = mask.numpy(force=True)
        observation, _ = self.vector.reset(seed=seed, options=options)
        self.episodes[mask.to(self.device)] = 0
        return self.tensors(observation), {}

    def step(self, actions: Any) -> tuple[Observation, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Act in every copy; those that end restart in the same call.

        Raises:
            InvalidValueError: If there is not one action per copy, each of the shape of the space.
        """
        if isinstance(actions, Tensor):
            actions = actions.numpy(force=True)
        self.check_actions(actions)
        observation, reward, terminated, truncated, info = self.vector.step(actions)
        done = torch.as_tensor(terminated | truncated, device=self.device)
        self.episodes = torch.where(
            done, (self.episodes + 1) % self.episodes_per_trial, self.episodes
        )
        report = {name: self.measure(name, info) for name in self.measures}
        report["start"] = done & (self.episodes == 0)
        report["final_obs"] = self.tensors(stack_final(observation, info))
        return (
            self.tensors(observation),
            torch.as_tensor(reward, dtype=torch.float32, device=self.device),
            torch.as_tensor(terminated, device=self.device),
            torch.as_tensor(truncated, device=self.device),
            report,
        )

    def check_actions(self, actions: Any) -> None:
        """Refuse actions that are too many, too few or of another shape, before any copy acts."""
        allowed = f"{self.action_space.shape}: {self.num_envs} actions"
        try:
            shape = np.shape(actions)
        except ValueError:
            raise InvalidValueError("shape of the actions", "uneven", allowed) from None
        if shape != self.action_space.shape:
            raise InvalidValueError("shape of the actions", shape, allowed)

    def measure(self, name: str, info: dict[str, Any]) -> Tensor:
        """Read a number from the copies' info, of the old episode where one just ended."""
        value = np.full(self.num_envs, np.nan, dtype=np.float32)
        ended = info.get("_final_info", np.zeros(self.num_envs, dtype=bool))
        for source, rows in ((info, ~ended), (info.get("final_info", {}), ended)):
            if name in source:
                given = source[f"_{name}"] & rows
                value[given] = source[name][given]
        return torch.as_tensor(value, device=self.device)

    def tensors(self, observation: Any) -> Observation:
        """Move arrays to the device, float64 as float32."""
        if isinstance(observation, dict):
            return {name: self.tensors(part) for name, part in observation.items()}
        dtype = torch.float32 if observation.dtype == np.float64 else None
        return torch.as_tensor(observation, dtype=dtype, device=self.device)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the copies."""
        if hasattr(self, "vector"):
            self.vector.close(**kwargs)


def _find(environment: str) -> EnvSpec:
    """Return what is registered under an id, so that other processes need not know the id."""
    module, _, name = environment.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            allowed = f"an importable module before the colon ({error})"
            raise InvalidValueError("environment", environment, allowed) from error
    spec = gymnasium.registry.get(name)
    if spec is None:
        raise UnknownEnvironmentError(environment)
    if spec.entry_point is None:
        allowed = "an id of a single environment (gymnasium.make_vec makes this one)"
        raise InvalidValueError("environment", environment, allowed)
    return spec


def _observed(space: spaces.Space, *, nested: bool = False) -> spaces.Space:
    """Return the space of the tensors handed out, or refuse it."""
    if isinstance(space, spaces.Dict) and not nested:
        return spaces.Dict({name: _observed(part, nested=True) for name, part in space.items()})
    if isinstance(space, spaces.Box):
        if space.dtype != np.float64:
            return space
        with np.errstate(over="ignore"):  # bounds beyond float32 become infinite
            low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32)
    if not _counts_from_zero(space):
        allowed = "Discrete and MultiDiscrete from 0, Box, and a Dict of these"
        raise UnsupportedSpaceError("observation space", space, allowed)
    return space


def _check_action(space: spaces.Space) -> spaces.Space:
    """Return the space unless policies cannot act in it."""
    if not isinstance(space, spaces.Box) and not _counts_from_zero(space):
        raise UnsupportedSpaceError("action space", space, "Discrete and MultiDiscrete from 0, Box")
    return space


def _counts_from_zero(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and not np.any(space.start)
