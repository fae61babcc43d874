"""Gymnasium's MuJoCo tasks with hidden velocities, simulated in batches by MuJoCo-Warp."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor

from engram.envs.vector import BatchedEnv, Observation, Step
from engram.envs.warp_physics import Physics, Room, assets, most_room
from engram.envs.warp_tasks import TASKS, Motion, Task
from engram.kernels.errors import InvalidValueError, MissingPackageError


class WarpWorlds(NamedTuple):
    """What decides the future of N worlds; all but the last two are Warp's own memory."""

    qpos: Float[Tensor, "N q"]
    """Positions [m, rad]."""
    qvel: Float[Tensor, "N v"]
    """Velocities [m/s, rad/s]."""
    warmstart: Float[Tensor, "N v"]
    """Where the constraint solver begins [m/s², rad/s²]."""
    place: Float[Tensor, "N d"]
    """Where the body whose speed is rewarded stood when Gymnasium last looked [m]."""
    elapsed: Int[Tensor, " N"]
    """Steps since the episode began, int64."""


class WarpMujoco(BatchedEnv[WarpWorlds]):
    def __init__(
        self,
        num_envs: int,
        *,
        task: str = "InvertedPendulum",
        settings: Mapping[str, Any] | None = None,
        contacts: int | None = None,
        constraints: int | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        if task not in TASKS:
            raise InvalidValueError("task", task, TASKS)
        if num_envs < 1:
            raise InvalidValueError("num_envs", num_envs, "1 or more")
        self.task = configured(TASKS[task], settings or {})
        for package in ("mujoco", "warp", "mujoco_warp"):
            if importlib.util.find_spec(package) is None:
                raise MissingPackageError(package, "warp")
        import mujoco

        model = mujoco.MjModel.from_xml_path(str(assets() / self.task.model))
        need = most_room(model)
        self.physics = Physics(
            model,
            num_envs,
            substeps=self.task.frame_skip,
            device=torch.device(device),
            room=Room(contacts or need.contacts, constraints or need.constraints),
            forces=self.task.body is not None,
        )
        self.seconds = float(model.opt.timestep * self.task.frame_skip)
        self.first = torch.as_tensor(model.qpos0, dtype=torch.float32, device=device)
        self.dimensions = 1 if self.task.body is None else 2
        self._worlds = WarpWorlds(
            self.physics.qpos,
            self.physics.qvel,
            self.physics.warmstart,
            torch.zeros(num_envs, self.dimensions, device=device),
            torch.zeros(num_envs, dtype=torch.int64, device=device),
        )
        shown = int(model.nq) - self.task.skipped
        bounds = model.actuator_ctrlrange.astype(np.float32)
        super().__init__(
            num_envs,
            spaces.Box(-np.inf, np.inf, (shown,), dtype=np.float32),
            spaces.Box(bounds[:, 0], bounds[:, 1], dtype=np.float32),
            device=device,
            seed=seed,
        )

    @property
    def worlds(self) -> WarpWorlds:
        return self._worlds

    @worlds.setter
    def worlds(self, worlds: WarpWorlds) -> None:
        for mine, given in zip(self._worlds, worlds, strict=True):
            mine.copy_(given)

    def draw(self, count: int) -> WarpWorlds:
        size, width = (count, len(self.first)), (count, self.physics.qvel.shape[1])
        scale, generator, device = self.task.reset_noise_scale, self.generator, self.device

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device) * (2 * scale) - scale

        qpos = self.first + uniform(*size)
        if self.task.normal:
            qvel = scale * torch.randn(*width, generator=generator, device=device)
        else:
            qvel = uniform(*width)
        return WarpWorlds(
            qpos,
            qvel,
            torch.zeros_like(qvel),
            qpos[:, : self.dimensions].clone(),
            torch.zeros(count, dtype=torch.int64, device=device),
        )

    def advance(self, action: Tensor) -> Step:
        qpos, qvel, _, place, elapsed = self.worlds
        physics, task = self.physics, self.task
        before = place.clone()
        physics.control.copy_(action)
        physics.run()
        body = task.body
        place.copy_(qpos[:, :1] if body is None else physics.positions[:, body, :2])
        elapsed += 1
        motion = Motion(
            before, place, self.seconds, qpos, qvel, self.first, action.float(), physics.forces
        )
        reward, terminated, measures = task.judge(motion)
        diverged = ~motion.finite
        return Step(
            self.observe(),
            torch.where(diverged, 0.0, reward),
            terminated | diverged,
            elapsed >= task.max_episode_steps,
            {**measures, "diverged": diverged.float()},
        )

    def observe(self) -> Observation:
        return self.worlds.qpos[:, self.task.skipped :].clone()


def configured(kind: type[Task], settings: Mapping[str, Any]) -> Task:
    allowed = [field.name for field in dataclasses.fields(kind)]
    for name in settings:
        if name not in allowed:
            raise InvalidValueError("settings", name, allowed)
    return kind(**settings)
