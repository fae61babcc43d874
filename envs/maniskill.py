"""ManiSkill 3 tasks: manipulation, simulated and rendered on one GPU, never leaving it."""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from engram.envs.adapter import UnsupportedSpaceError
from engram.envs.maniskill_observation import flat, flat_space
from engram.envs.vector import Observation
from engram.kernels.errors import InvalidValueError, MissingPackageError

OBSERVATIONS = ("state", "state_dict", "rgb", "depth", "rgbd", "rgb+state", "rgb+depth+state")


class ManiSkill(gymnasium.vector.VectorEnv):
    """Runs N worlds of a ManiSkill task with the semantics of `BatchedEnv`.

    Nested observations become a flat Dict whose names are paths (`"agent/qpos"`,
    `"sensor_data/base_camera/rgb"`); images stay uint8 `[H, W, C]`, everything else is float32, and
    the camera matrices are left out. Measurements are the vectors of the task's own evaluation
    (`success`, `is_grasped`, …, of the last step) and `success_once`, `fail_once` where it has
    success and failure.

    On the CPU ManiSkill simulates a single world; more need CUDA. Even without images it wants a
    Vulkan device that renders: on the CPU, Mesa's lavapipe from 24.3 on.

    Tested against ManiSkill 3.0.1 with Gymnasium 1.2.2 on the CPU, one world, with states and with
    images. Never run on a GPU.

    Args:
        num_envs: Number of worlds N.
        task: Id of a ManiSkill task, such as "PickCube-v1".
        observation: ManiSkill's `obs_mode`.
        ignore_terminations: Whether episodes go on after success or failure, up to their limit.
        settings: More keywords of `gymnasium.make`: `max_episode_steps`, `control_mode`,
            `reward_mode`, `sim_backend`, and others.
        device: Where simulation and tensors live.
        seed: Seed of the first reset.

    Raises:
        MissingPackageError: If `engram[maniskill]` is not installed.
        UnsupportedSpaceError: If the task has several robots, whose actions are a Dict.
    """

    truncates = True
    takes_tensors = True

    def __init__(
        self,
        num_envs: int,
        *,
        task: str = "PickCube-v1",
        observation: str = "state",
        ignore_terminations: bool = False,
        settings: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        on_cpu = torch.device(device).type == "cpu"
        if num_envs < 1 or (on_cpu and num_envs > 1):
            raise InvalidValueError("num_envs", num_envs, "1, or more with device=cuda")
        if observation not in OBSERVATIONS:
            raise InvalidValueError("observation", observation, OBSERVATIONS)
        if importlib.util.find_spec("mani_skill") is None:
            raise MissingPackageError("mani_skill", "maniskill")
        importlib.import_module("mani_skill.envs")  # registers the tasks
        registry: Any = importlib.import_module("mani_skill.utils.registration")
        wrappers: Any = importlib.import_module("mani_skill.vector.wrappers.gymnasium")
        if task not in registry.REGISTERED_ENVS:
            raise InvalidValueError("task", task, sorted(registry.REGISTERED_ENVS))
        made = gymnasium.make(
            task,
            **{
                "num_envs": num_envs,
                "obs_mode": observation,
                "sim_backend": "physx_cpu" if on_cpu else "physx_cuda",
                **(settings or {}),
            },
        )
        self.vector: Any = wrappers.ManiSkillVectorEnv(
            made, ignore_terminations=ignore_terminations, record_metrics=True
        )
        self.num_envs = num_envs
        self.device: torch.device = self.vector.device
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
        self.single_observation_space = flat_space(self.vector.single_observation_space)
        self.single_action_space = self.vector.single_action_space
        if not isinstance(self.single_action_space, spaces.Box):
            raise UnsupportedSpaceError("action space", self.single_action_space, "Box")
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.seed: int | None = seed
        self.randomness: list[Tensor] = []
        with self.own_randomness(seed):
            _, told = self.vector.reset(seed=self.seeds(seed))
        self.measures = [name for name, value in told.items() if self.is_measure(name, value)]
        self.outcomes = [name for name in ("success", "fail") if name in told]

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start every world anew; `options={"reset_mask": [N]}` restarts a part of them."""
        seed, self.seed = self.seed if seed is None else seed, None
        if seed is not None and not isinstance(seed, int):
            raise InvalidValueError("seed", seed, "one integer for the whole batch")
        mask = (options or {}).get("reset_mask")
        chosen = {}
        if mask is not None:
            chosen["env_idx"] = torch.as_tensor(mask, device=self.device).nonzero()[:, 0]
            if not len(chosen["env_idx"]):  # ManiSkill fails on none
                return flat(self.vector.base_env.get_obs()), {}
        seeds = None if seed is None else self.seeds(seed)
        with self.own_randomness(seed):
            observation, _ = self.vector.reset(seed=seeds, options=chosen)
        return flat(observation), {}

    def step(self, actions: Any) -> tuple[Observation, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Act in every world; those that end restart in the same call."""
        actions = torch.as_tensor(actions, device=self.device)
        with self.own_randomness():
            observation, reward, terminated, truncated, told = self.vector.step(actions)
        # Where a world ended, these hold all worlds as they were before the restart.
        final = flat(told.get("final_observation", observation))
        last = told.get("final_info", told)
        report: dict[str, Any] = {
            name: last[name].to(torch.float32, copy=True) for name in self.measures
        }
        for name in self.outcomes:
            report[f"{name}_once"] = last["episode"][f"{name}_once"].to(torch.float32, copy=True)
        report["final_obs"] = final
        reward = reward.to(torch.float32, copy=True)
        return flat(observation), reward, terminated.clone(), truncated.clone(), report

    def seeds(self, seed: int) -> list[int]:
        """Return a seed per world; ManiSkill would derive them from 32 bits of one."""
        return np.random.SeedSequence(seed).generate_state(self.num_envs).tolist()

    @contextmanager
    def own_randomness(self, seed: int | None = None) -> Iterator[None]:
        """Let ManiSkill draw from generators of this environment, seeded anew where `seed`.

        It draws from torch's global ones, which the learner advances too. Its own remedy,
        `enhanced_determinism`, gives all worlds that restart the seed of the first.
        """
        generators = [torch.default_generator]
        if self.device.type == "cuda":
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            generators.append(torch.cuda.default_generators[index])
        theirs = [generator.get_state() for generator in generators]
        try:
            for i, generator in enumerate(generators):
                if seed is not None:
                    generator.manual_seed(seed)
                else:
                    generator.set_state(self.randomness[i])
            yield
            self.randomness = [generator.get_state() for generator in generators]
        finally:
            for generator, state in zip(generators, theirs, strict=True):
                generator.set_state(state)

    def is_measure(self, name: str, value: Any) -> bool:
        """Whether an entry of the task's evaluation is a vector or matrix over the worlds."""
        counts = name in ("elapsed_steps", "reconfigure")
        fits = isinstance(value, Tensor) and value.ndim in (1, 2)
        return not counts and fits and len(value) == self.num_envs

    def close_extras(self, **kwargs: Any) -> None:
        """Close the simulator."""
        if hasattr(self, "vector"):
            self.vector.close(**kwargs)
