"""Gymnasium's MuJoCo tasks, version 5, as arithmetic on batches: rewards, ends and first states.

The fields of a task are the keywords of Gymnasium's environment of the same name, with its
defaults.
"""

import abc
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Motion(NamedTuple):
    """What one step did to N worlds."""

    before: Float[Tensor, "N d"]
    """Where the body that is to move stood before the step [m]."""
    after: Float[Tensor, "N d"]
    """Where it stands now [m]."""
    seconds: float
    """Time between the two [s]."""
    qpos: Float[Tensor, "N q"]
    """Positions after the step [m, rad]."""
    qvel: Float[Tensor, "N v"]
    """Velocities after the step [m/s, rad/s]."""
    first_qpos: Float[Tensor, " q"]
    """Positions that episodes begin at, but for noise."""
    action: Float[Tensor, "N u"]
    """The action as it was given: costs are of it, though motors clip it."""
    forces: Float[Tensor, "N b 6"]
    """Torque and force of contacts on each body [N m, N]; zero where the task needs none."""

    @property
    def finite(self) -> Bool[Tensor, " N"]:
        """Whether every number of the state is finite."""
        return self.qpos.isfinite().all(1) & self.qvel.isfinite().all(1)


class Verdict(NamedTuple):
    """What a step was worth."""

    reward: Float[Tensor, " N"]
    terminated: Bool[Tensor, " N"]
    measures: dict[str, Float[Tensor, " N"]]
    """The numbers in Gymnasium's info, by its names."""


@dataclass(frozen=True)
class Task(abc.ABC):
    """What a task has beside its model."""

    model: ClassVar[str]
    """File of the model among Gymnasium's assets."""
    skipped: ClassVar[int] = 1
    """Leading positions that are not observed: where the body is in the world."""
    body: ClassVar[int | None] = None
    """The body whose place counts, as a row of positions and forces; the first joint where None."""
    normal: ClassVar[bool] = False
    """Whether the noise on first velocities is normal rather than uniform."""

    max_episode_steps: int = 1000
    frame_skip: int = 4
    reset_noise_scale: float = 5e-3

    @abc.abstractmethod
    def judge(self, motion: Motion) -> Verdict:
        """Score a step, and say where it ended an episode."""


@dataclass(frozen=True)
class InvertedPendulum(Task):
    """Balance a pole on a cart: 1 per step until it leans by more than 0.2 rad."""

    model: ClassVar[str] = "inverted_pendulum.xml"
    skipped: ClassVar[int] = 0
    frame_skip: int = 2
    reset_noise_scale: float = 0.01

    def judge(self, motion: Motion) -> Verdict:
        """1 for standing."""
        terminated = ~motion.finite | (motion.qpos[:, 1].abs() > 0.2)
        reward = (~terminated).float()
        return Verdict(reward, terminated, {"reward_survive": reward})


@dataclass(frozen=True)
class HalfCheetah(Task):
    """Run on two legs: forward speed [m/s] less a cost of the motors; episodes never end early."""

    model: ClassVar[str] = "half_cheetah.xml"
    normal: ClassVar[bool] = True
    frame_skip: int = 5
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.1
    reset_noise_scale: float = 0.1

    def judge(self, motion: Motion) -> Verdict:
        """Speed less effort."""
        speed = (motion.after - motion.before)[:, 0] / motion.seconds
        forward = self.forward_reward_weight * speed
        effort = self.ctrl_cost_weight * motion.action.square().sum(1)
        measures = {
            "x_position": motion.qpos[:, 0].clone(),
            "x_velocity": speed,
            "reward_forward": forward,
            "reward_ctrl": -effort,
        }
        return Verdict(forward - effort, torch.zeros_like(motion.finite), measures)


@dataclass(frozen=True)
class Walker2d(HalfCheetah):
    """Walk on two legs: as HalfCheetah, and 1 per step until the torso is low, high or tilted."""

    model: ClassVar[str] = "walker2d_v5.xml"
    normal: ClassVar[bool] = False
    frame_skip: int = 4
    ctrl_cost_weight: float = 1e-3
    healthy_reward: float = 1.0
    terminate_when_unhealthy: bool = True
    healthy_z_range: tuple[float, float] = (0.8, 2.0)
    healthy_angle_range: tuple[float, float] = (-1.0, 1.0)
    reset_noise_scale: float = 5e-3

    def judge(self, motion: Motion) -> Verdict:
        """Speed and health less effort."""
        reward, _, measures = super().judge(motion)
        healthy = self.healthy(motion)
        survive = self.healthy_reward * healthy
        terminated = ~healthy if self.terminate_when_unhealthy else torch.zeros_like(healthy)
        measures = {**measures, **self.place(motion), "reward_survive": survive}
        return Verdict(reward + survive, terminated, measures)

    def healthy(self, motion: Motion) -> Bool[Tensor, " N"]:
        """Whether the torso is upright and in the air."""
        _, height, angle = motion.qpos[:, :3].unbind(1)
        return inside(height, self.healthy_z_range) & inside(angle, self.healthy_angle_range)

    def place(self, motion: Motion) -> dict[str, Float[Tensor, " N"]]:
        """Where the torso is, beside its x."""
        return {"z_distance_from_origin": motion.qpos[:, 1] - motion.first_qpos[1]}


@dataclass(frozen=True)
class Hopper(Walker2d):
    """Hop on one leg: as Walker2d, within narrower bounds."""

    model: ClassVar[str] = "hopper.xml"
    healthy_state_range: tuple[float, float] = (-100.0, 100.0)
    healthy_z_range: tuple[float, float] = (0.7, float("inf"))
    healthy_angle_range: tuple[float, float] = (-0.2, 0.2)

    def healthy(self, motion: Motion) -> Bool[Tensor, " N"]:
        """Also whether nothing else is out of bounds."""
        state = torch.cat([motion.qpos, motion.qvel], 1)[:, 2:]
        return super().healthy(motion) & inside(state, self.healthy_state_range).all(1)


@dataclass(frozen=True)
class Ant(Walker2d):
    """Walk on four legs in three dimensions; contacts cost too.

    The speed is that of the torso as the last stage of the integrator saw it, which is Gymnasium's.
    """

    model: ClassVar[str] = "ant.xml"
    skipped: ClassVar[int] = 2
    body: ClassVar[int | None] = 1
    normal: ClassVar[bool] = True
    frame_skip: int = 5
    ctrl_cost_weight: float = 0.5
    contact_cost_weight: float = 5e-4
    contact_force_range: tuple[float, float] = (-1.0, 1.0)
    healthy_z_range: tuple[float, float] = (0.2, 1.0)
    reset_noise_scale: float = 0.1

    def judge(self, motion: Motion) -> Verdict:
        """Also less the square of what the ground does to the bodies."""
        reward, terminated, measures = super().judge(motion)
        clipped = motion.forces.clamp(*self.contact_force_range)
        contact = self.contact_cost_weight * clipped.square().sum((1, 2))
        return Verdict(reward - contact, terminated, {**measures, "reward_contact": -contact})

    def healthy(self, motion: Motion) -> Bool[Tensor, " N"]:
        """Whether the torso is neither on the ground nor in the sky."""
        low, high = self.healthy_z_range
        height = motion.qpos[:, 2]
        return motion.finite & (low <= height) & (height <= high)

    def place(self, motion: Motion) -> dict[str, Float[Tensor, " N"]]:
        """Where the torso is, beside its x."""
        return {
            "y_position": motion.qpos[:, 1].clone(),
            "y_velocity": (motion.after - motion.before)[:, 1] / motion.seconds,
            "distance_from_origin": motion.qpos[:, :2].norm(dim=1),
        }


def inside(value: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Whether each value is strictly between the bounds."""
    low, high = bounds
    return (low < value) & (value < high)


TASKS: dict[str, type[Task]] = {
    task.__name__: task for task in (InvertedPendulum, Hopper, HalfCheetah, Walker2d, Ant)
}
