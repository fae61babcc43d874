"""Gymnasium's MuJoCo tasks with the velocities hidden, simulated by the thousand on one device."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor

from engram.envs.vector import BatchedEnv, Step
from engram.envs.warp_physics import Physics, Room, most_room
from engram.envs.warp_tasks import TASKS, Motion, Task
from engram.kernels.errors import InvalidValueError, MissingPackageError


class WarpWorlds(NamedTuple):
    """All that decides what N worlds do next. The first three are memory of Warp's."""

    qpos: Float[Tensor, "N q"]
    """Positions [m, rad]."""
    qvel: Float[Tensor, "N v"]
    """Velocities [m/s, rad/s]."""
    warmstart: Float[Tensor, "N v"]
    """Acceleration that the constraint solver starts from [m/s², rad/s²]."""
    place: Float[Tensor, "N d"]
    """Where the body whose speed is rewarded stood when the task last looked [m]."""
    elapsed: Int[Tensor, " N"]
    """Steps since the episode began, int64."""


class WarpMujoco(BatchedEnv[WarpWorlds]):
    """A MuJoCo task (Gymnasium v5) that shows positions only, simulated by MuJoCo-Warp.

    Models, actions, rewards, ends, first states (the distribution) and limits of steps are
    Gymnasium's, and the observation is the one of `MaskedMujoco`: a policy trained in one acts in
    the other. "Ant", on four legs in three dimensions, is here alone. Measurements are those of
    Gymnasium's info by the same names, of the last step, and `diverged`.

    MuJoCo-Warp computes in float32 and promises no precision. Measured against MuJoCo 4.0 on the
    CPU, one step from each of 800 states (8 trajectories of random actions, some beyond the motors'
    limits) ends the same episodes and differs by at most:

    | task | position | velocity | reward | position after 10, 30, 100 steps alone |
    |---|---|---|---|---|
    | InvertedPendulum | 3e-8 | 5e-7 | 0 | 2e-7, 3e-6, 4e-5 |
    | Hopper | 2e-7 | 3e-6 | 6e-6 | 3e-7, 4e-7, 7e-6 |
    | Walker2d | 9e-7 | 1e-4 | 8e-6 | 2e-6, 2e-5, 1e-4 |
    | Ant | 5e-7 | 2e-5 | 5e-6 | 3e-6, 3e-4, 3 |
    | HalfCheetah | 8e-6 | 1e-3 | 1e-5 | 2e-5, 0.08, 1 |

    Ant and HalfCheetah are chaotic: two runs of MuJoCo itself that begin 1e-7 apart are 3 and 2
    apart after 100 steps.

    Deviations: contact frames of capsules are MuJoCo's, not MuJoCo-Warp's (`warp_contacts.py`). A
    world whose state is no longer finite ends with a reward of 0, `terminated`, and `diverged` 1,
    where MuJoCo would go on from the first state.

    `save` and `load` continue bit for bit on the CPU. A GPU repeats itself only where
    `deterministic`; what is said of GPUs follows the documentation and has not been run on one.

    Args:
        num_envs: Number of worlds N.
        task: "InvertedPendulum", "Hopper", "HalfCheetah", "Walker2d" or "Ant".
        settings: Keywords of the Gymnasium environment that concern rewards, ends and noise; the
            fields of the task in `warp_tasks.py`.
        contacts: Contacts per world that there is room for, shared by all; by default the most
            that the model can have.
        constraints: Constraint rows in each world that there is room for; likewise.
        deterministic: Whether a GPU repeats itself bit for bit, which costs time.
        device: Where physics and tensors live.
        seed: Seed of the generator.

    Raises:
        MissingPackageError: If `engram[warp]` is not installed.
        InvalidValueError: While stepping, if `contacts` or `constraints` were too few: at once on
            the CPU, within 512 steps on a GPU, which must not wait for the host.
    """

    truncates = True

    def __init__(
        self,
        num_envs: int,
        *,
        task: str = "InvertedPendulum",
        settings: Mapping[str, Any] | None = None,
        contacts: int | None = None,
        constraints: int | None = None,
        deterministic: bool = False,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        if task not in TASKS:
            raise InvalidValueError("task", task, TASKS)
        at_least_one = {"num_envs": num_envs, "contacts": contacts, "constraints": constraints}
        for name, number in at_least_one.items():
            if number is not None and number < 1:
                raise InvalidValueError(name, number, "1 or more")
        self.task = configured(TASKS[task], settings or {})
        for package in ("mujoco", "warp", "mujoco_warp"):
            if importlib.util.find_spec(package) is None:
                raise MissingPackageError(package, "warp")
        mujoco: Any = importlib.import_module("mujoco")
        assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
        model = mujoco.MjModel.from_xml_path(str(assets / self.task.model))
        most = most_room(model)
        self.physics = Physics(
            model,
            num_envs,
            substeps=self.task.frame_skip,
            device=torch.device(device),
            room=Room(contacts or most.contacts, constraints or most.constraints),
            forces=self.task.body is not None,
            deterministic=deterministic,
        )
        self.seconds = float(model.opt.timestep) * self.task.frame_skip
        self.first = torch.as_tensor(model.qpos0, dtype=torch.float32, device=device)
        self.seen = 1 if self.task.body is None else 2  # coordinates of a place
        self._worlds = WarpWorlds(
            self.physics.qpos,
            self.physics.qvel,
            self.physics.warmstart,
            torch.zeros(num_envs, self.seen, device=device),
            torch.zeros(num_envs, dtype=torch.int64, device=device),
        )
        low, high = model.actuator_ctrlrange.astype(np.float32).T
        super().__init__(
            num_envs,
            spaces.Box(-np.inf, np.inf, (int(model.nq) - self.task.skipped,), dtype=np.float32),
            spaces.Box(low, high, dtype=np.float32),
            device=device,
            seed=seed,
        )

    @property
    def worlds(self) -> WarpWorlds:
        """The worlds; what is assigned is copied to where Warp has them."""
        return self._worlds

    @worlds.setter
    def worlds(self, worlds: WarpWorlds) -> None:  # type: ignore
        for mine, given in zip(self._worlds, worlds, strict=True):
            mine.copy_(given)

    def draw(self, count: int) -> WarpWorlds:
        """Draw states around the task's first one, at rest but for noise."""
        scale, generator, device = self.task.reset_noise_scale, self.generator, self.device
        shape = count, self.physics.qvel.shape[1]
        noise = torch.rand(count, len(self.first), generator=generator, device=device)
        qpos = self.first + scale * (2 * noise - 1)
        if self.task.normal:
            qvel = scale * torch.randn(shape, generator=generator, device=device)
        else:
            qvel = scale * (2 * torch.rand(shape, generator=generator, device=device) - 1)
        elapsed = torch.zeros(count, dtype=torch.int64, device=device)
        return WarpWorlds(qpos, qvel, torch.zeros_like(qvel), qpos[:, : self.seen], elapsed)

    def advance(self, action: Tensor) -> Step:
        """Hold the action for `frame_skip` timesteps."""
        assert action.shape == self.physics.control.shape, action.shape
        task, physics = self.task, self.physics
        qpos, qvel, _, place, elapsed = self.worlds
        before = place.clone()
        physics.control.copy_(action)
        physics.run()
        place.copy_(qpos[:, :1] if task.body is None else physics.positions[:, task.body, :2])
        elapsed += 1
        action = action.to(torch.float32)
        forces = physics.forces
        motion = Motion(before, place, self.seconds, qpos, qvel, self.first, action, forces)
        reward, terminated, measures = task.judge(motion)
        diverged = ~motion.finite
        return Step(
            self.observe(),
            torch.where(diverged, 0.0, reward),
            terminated | diverged,
            elapsed >= task.max_episode_steps,
            {**measures, "diverged": diverged.float()},
        )

    def observe(self) -> Float[Tensor, "N shown"]:
        """Show the positions, but for where in the world the body is."""
        return self.worlds.qpos[:, self.task.skipped :].clone()

    def save(self) -> dict[str, Tensor]:
        """Return the worlds, once it is certain that they had room."""
        self.physics.check()
        return super().save()


def configured(kind: type[Task], settings: Mapping[str, Any]) -> Task:
    """Return the task with some of its fields set."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    given = {}
    for name, value in settings.items():
        if name not in defaults:
            raise InvalidValueError("settings", name, defaults)
        given[name] = _like(defaults[name], value, name)
    task = kind(**given)
    for name, least in (("max_episode_steps", 1), ("frame_skip", 1), ("reset_noise_scale", 0)):
        if getattr(task, name) < least:
            raise InvalidValueError(f"settings.{name}", getattr(task, name), f"{least} or more")
    return task


def _like(default: Any, value: Any, name: str) -> Any:
    """Return a setting as the type of its default: YAML writes 1 for 1.0, and lists for pairs."""
    try:
        if isinstance(default, tuple):
            low, high = value
            return float(low), float(high)
        return float(value) if isinstance(default, float) else type(default)(value)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"settings.{name}", value, f"such as {default}") from error
