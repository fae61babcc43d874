"""Batched environments on torch tensors, and the one view of them that learners use.

`BatchedEnv` is a Gymnasium `VectorEnv` whose N worlds advance by array operations on one device.
`Stream` wraps any same-step autoreset `VectorEnv` and yields what a memory needs: the observation
and the flag `start`. Nothing outside this file knows how environments reset.
"""

import abc
from typing import Any, Generic, NamedTuple, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float
from torch import Tensor

from engram.kernels.errors import DataError, InvalidValueError

Observation = Any
"""A tensor `[N, ...]`, or a dict of such tensors, as the observation space says."""
W = TypeVar("W")


class Step(NamedTuple):
    """What one call to `BatchedEnv.advance` reports, before any world restarts."""

    observation: Observation
    """Observation after the action, of the world that acted."""
    reward: Float[Tensor, " N"]
    terminated: Bool[Tensor, " N"]
    truncated: Bool[Tensor, " N"]
    info: dict[str, Tensor]
    """Measurements of the episode so far, each `[N]` or `[N, n]` float32, read where it ends; NaN
    where one does not apply. A key never appears or vanishes between steps."""


class BatchedEnv(gymnasium.vector.VectorEnv, abc.ABC, Generic[W]):
    """N worlds in one structure of tensors, with Gymnasium's `VectorEnv` semantics.

    Autoreset is same-step: the observation returned with `terminated | truncated` is already the
    first of the next episode, and `info["final_obs"]` holds the last of the old one (every row is
    filled; rows that did not end equal the returned observation).

    A subclass keeps its worlds in `self.worlds`, a NamedTuple of tensors with N first, and
    implements `draw`, `advance` and `observe`. Randomness comes from `self.generator` alone.
    Worlds restart in place, so an observation never shares memory with them. Where training and
    evaluation worlds differ, the constructor takes `split="train" | "evaluation"`.

    Args:
        num_envs: Number of worlds N.
        device: Where every tensor lives.
        seed: Seed of the generator; `reset(seed=...)` sets it anew.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012
    takes_tensors: bool = True
    """Whether `step` wants actions as tensors on its device, rather than arrays on the host."""
    truncates: bool = False
    """Whether `truncated` can ever be true; learners skip the bootstrap where it cannot."""
    chance: float | None = None
    """Mean return per episode of the best policy that remembers nothing, where known."""
    optimum: float | None = None
    """Mean return per episode of the best policy, where known."""

    def __init__(
        self,
        num_envs: int,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        if num_envs < 1:
            raise InvalidValueError("num_envs", num_envs, "1 or more")
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = gymnasium.vector.utils.batch_space(observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(action_space, num_envs)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.worlds: W = self.draw(num_envs)

    @abc.abstractmethod
    def draw(self, count: int) -> W:
        """Return `count` fresh worlds, a NamedTuple of tensors `[count, ...]`."""

    @abc.abstractmethod
    def advance(self, action: Tensor) -> Step:
        """Move every world by one step; no world restarts here."""

    @abc.abstractmethod
    def observe(self) -> Observation:
        """Return the observation of `self.worlds` as it stands."""

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start every world anew; `options={"reset_mask": [N]}` restarts a part of them."""
        if seed is not None:
            if not isinstance(seed, int):
                raise InvalidValueError("seed", seed, "one integer for the whole batch")
            self.generator.manual_seed(seed)
        mask = (options or {}).get("reset_mask")
        if mask is None:
            self.worlds = self.draw(self.num_envs)
        else:
            self.restart(torch.as_tensor(mask, device=self.device))
        return self.observe(), {}

    def step(self, actions: Any) -> tuple[Observation, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Advance, then restart the worlds that ended, in the same call."""
        action = torch.as_tensor(actions, device=self.device)
        step = self.advance(action)
        done = step.terminated | step.truncated
        self.restart(done)
        ended_here = self.device.type == "cpu" and not bool(done.any())
        observation = step.observation if ended_here else self.observe()
        info: dict[str, Any] = {**step.info, "final_obs": step.observation}
        return observation, step.reward, step.terminated, step.truncated, info

    def restart(self, mask: Bool[Tensor, " N"]) -> None:
        """Replace the worlds in `mask` by fresh ones."""
        assert isinstance(self.worlds, tuple)
        if self.device.type == "cpu":
            (rows,) = mask.nonzero(as_tuple=True)
            if len(rows):
                for old, new in zip(self.worlds, self.draw(len(rows)), strict=True):  # type: ignore
                    old[rows] = new
            return
        # On an accelerator a count would make the host wait: draw for all, keep where asked.
        fresh = self.draw(self.num_envs)
        self.worlds = type(self.worlds)(
            *(
                torch.where(mask.view(-1, *[1] * (old.ndim - 1)), new, old)
                for old, new in zip(self.worlds, fresh, strict=True)  # type: ignore
            )
        )

    def save(self) -> dict[str, Tensor]:
        """Return everything that decides what this environment does next, copied."""
        assert isinstance(self.worlds, tuple)
        kept = {f"world.{i}": part.clone() for i, part in enumerate(self.worlds)}
        return {**kept, "generator": self.generator.get_state()}

    def load(self, saved: dict[str, Tensor]) -> None:
        """Continue from what `save` returned, exactly.

        Raises:
            DataError: If it was saved by another environment or with other settings.
        """
        assert isinstance(self.worlds, tuple)
        parts = [saved.get(f"world.{i}") for i in range(len(self.worlds))]
        for i, (part, here) in enumerate(zip(parts, self.worlds, strict=True)):
            if part is None or part.shape != here.shape or part.dtype != here.dtype:
                seen = "missing" if part is None else f"{part.dtype} {list(part.shape)}"
                raise DataError(
                    f"saved environment: world.{i} is {seen}; allowed: {here.dtype} "
                    f"{list(here.shape)}"
                )
        moved = [part.to(self.device, copy=True) for part in parts if part is not None]
        self.worlds = type(self.worlds)(*moved)
        self.generator.set_state(saved["generator"].cpu())

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing to release."""

    def random_integers(self, high: int, *shape: int) -> Tensor:
        """int64 integers in [0, high) from the environment's generator."""
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def random_orders(self, count: int, of: int) -> Tensor:
        """`[count, of]` independent permutations of 0 … of-1."""
        noise = torch.rand(count, of, generator=self.generator, device=self.device)
        return noise.argsort(dim=1)


class Transition(NamedTuple):
    """One step of a `Stream`: what follows the action, and what ended with it."""

    observation: Observation
    """The next observation a policy acts on (of a new episode where `start`)."""
    start: Bool[Tensor, " N"]
    """Whether `observation` is the first of its memory scope."""
    reward: Float[Tensor, " N"]
    terminated: Bool[Tensor, " N"]
    truncated: Bool[Tensor, " N"]
    final_observation: Observation
    """Last observation of the episode that ended; valid where `terminated | truncated`."""
    info: dict[str, Any]


class Stream:
    """Feeds a policy from any same-step autoreset `VectorEnv`, in torch tensors on one device.

    Args:
        env: The environment; its `metadata["autoreset_mode"]` must be `SAME_STEP`.
        device: Device of the tensors handed out; that of the environment unless given.

    Raises:
        InvalidValueError: If the environment resets at the next step, which would put a step
            that nobody chose into every rollout.
    """

    def __init__(
        self, env: gymnasium.vector.VectorEnv, *, device: torch.device | str | None = None
    ):
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise InvalidValueError(
                "autoreset_mode",
                mode,
                "AutoresetMode.SAME_STEP (gymnasium.make_vec(..., vector_kwargs="
                '{"autoreset_mode": AutoresetMode.SAME_STEP}))',
            )
        self.env = env
        self.device = torch.device(device or getattr(env, "device", "cpu"))
        self.truncates: bool = getattr(env, "truncates", True)
        self.takes_tensors: bool = getattr(env, "takes_tensors", False)

    def reset(self, *, seed: int | None = None) -> tuple[Observation, Bool[Tensor, " N"]]:
        """Return the first observation and its `start`, which is true everywhere."""
        observation, _ = self.env.reset(seed=seed)
        start = torch.ones(self.env.num_envs, dtype=torch.bool, device=self.device)
        return self.tensors(observation), start

    def step(self, action: Tensor) -> Transition:
        """Act in every world."""
        sent = action if self.takes_tensors else action.cpu().numpy()
        observation, reward, terminated, truncated, info = self.env.step(sent)
        terminated = torch.as_tensor(terminated, device=self.device)
        truncated = torch.as_tensor(truncated, device=self.device)
        done = terminated | truncated
        start = info.pop("start", done)
        final = stack_final(observation, info)
        return Transition(
            self.tensors(observation),
            torch.as_tensor(start, device=self.device),
            torch.as_tensor(reward, dtype=torch.float32, device=self.device),
            terminated,
            truncated,
            self.tensors(final),
            info,
        )

    def tensors(self, observation: Observation) -> Observation:
        """Move an observation (tensor, array, or dict of them) to the stream's device."""
        if isinstance(observation, dict):
            return {name: self.tensors(part) for name, part in observation.items()}
        if isinstance(observation, tuple):
            return {str(i): self.tensors(part) for i, part in enumerate(observation)}
        return torch.as_tensor(observation, device=self.device)


def stack_final(observation: Observation, info: dict[str, Any]) -> Observation:
    """Take the final observations out of `info`, as a batch whose rows are all filled."""
    final = info.pop("final_obs", None)
    if final is None:
        return observation
    if not (isinstance(final, np.ndarray) and final.dtype == object):
        return final  # a whole batch already; Gymnasium gives an object array with gaps
    if isinstance(observation, dict):
        return {
            name: stack_final(part, {"final_obs": _column(final, name)})
            for name, part in observation.items()
        }
    filled = np.array(observation)
    for row, last in enumerate(final):
        if last is not None:
            filled[row] = last
    return filled


def _column(rows: np.ndarray, name: str) -> np.ndarray:
    """Pick one entry of every dict in an object array with gaps."""
    column = np.full(len(rows), None, dtype=object)
    for row, part in enumerate(rows):
        column[row] = part and part[name]
    return column
