"""What an action means: turns of the joints, or moves of the gripper by inverse kinematics."""

import abc

import numpy as np

from engram.envs.manipulation.arm import HOME_JOINTS, JOINTS, LOWER, OPENING, SPEED, UPPER
from engram.envs.manipulation.kinematics import Kinematics
from engram.envs.manipulation.world import PERIOD, World

REACH_LOW = (0.12, -0.27, 0.012)
REACH_HIGH = (0.47, 0.27, 0.29)
"""Corners of the box that the gripper is moved in [m]; all of it can be reached."""


class Control(abc.ABC):
    """Turns actions in [-1, 1] into commands for the servos of one world.

    The last number of an action is the gripper: -1 is closed, 1 is open.
    """

    size: int
    """Numbers in an action."""

    def __init__(self, world: World):
        self.world = world
        self.kinematics = Kinematics()

    @abc.abstractmethod
    def reset(self) -> None:
        """Begin an episode."""

    @abc.abstractmethod
    def act(self, action: np.ndarray) -> None:
        """Command the servos for one control step."""

    @abc.abstractmethod
    def toward(self, position: np.ndarray, opening: float) -> np.ndarray:
        """Return the action that brings the gripper nearest to a position [m].

        Args:
            position: Where the point between the finger tips shall be.
            opening: -1 (closed) to 1 (open).
        """

    @property
    @abc.abstractmethod
    def lead(self) -> np.ndarray:
        """How far the place that the servos steer for is ahead of the gripper, `[3]` [m]."""

    @staticmethod
    def gap(opening: float) -> float:
        """The gap between the fingers for the last number of an action [m]."""
        return OPENING * (opening + 1) / 2


class JointControl(Control):
    """Turns of the five joints, at most `TURN` each, and the gripper."""

    TURN = SPEED * PERIOD
    """[rad]"""
    size = len(JOINTS) + 1

    def reset(self) -> None:
        """Nothing is kept between actions."""

    def act(self, action: np.ndarray) -> None:
        """Move the set points by `TURN` times the action; they stop at the joints' limits."""
        self.world.command(self.TURN * action[:-1], self.gap(action[-1]))

    def toward(self, position: np.ndarray, opening: float) -> np.ndarray:
        """Follow a straight line, as `EndEffectorControl` would."""
        now = self._held()
        here = self.kinematics.position(now)
        move = _shortened(position - here, EndEffectorControl.MOVE)
        turn = self.kinematics.solve(now, here + move)
        action = np.append(turn / self.TURN, opening)
        return np.clip(action, -1, 1).astype(np.float32)

    @property
    def lead(self) -> np.ndarray:
        """Where the set points would bring it."""
        return self.kinematics.position(self._held()) - self.world.tcp

    def _held(self) -> np.ndarray:
        """The joint angles that a turn begins at."""
        return np.clip(self.world.set_points, LOWER, UPPER)


class EndEffectorControl(Control):
    """Moves of the gripper along x, y and z, at most `MOVE` each, and the gripper.

    The hand keeps pointing down with its fingers apart along y. A move adds to where the gripper
    was told to be, not to where it is, so that a load does not make it sink; the two are never
    more than `LEAD` apart.
    """

    MOVE = 0.05
    """[m]"""
    LEAD = 0.05
    """[m]"""
    size = 4

    def __init__(self, world: World):
        super().__init__(world)
        self.target = self.kinematics.position(np.array(HOME_JOINTS))

    def reset(self) -> None:
        """Begin where the gripper is."""
        self.target = self.world.tcp

    def act(self, action: np.ndarray) -> None:
        """Move the target, and solve for the joints that reach it."""
        self.target = np.clip(self._held() + self.MOVE * action[:3], REACH_LOW, REACH_HIGH)
        turn = self.kinematics.solve(self.world.set_points, self.target)
        self.world.command(turn, self.gap(action[3]))

    def toward(self, position: np.ndarray, opening: float) -> np.ndarray:
        """Move in a straight line."""
        move = _shortened(position - self._held(), self.MOVE) / self.MOVE
        return np.append(move, opening).astype(np.float32)

    @property
    def lead(self) -> np.ndarray:
        """To the target, no farther than the leash allows."""
        return np.clip(self.target - self.world.tcp, -self.LEAD, self.LEAD)

    def _held(self) -> np.ndarray:
        """Where a move begins."""
        return self.world.tcp + self.lead


def _shortened(move: np.ndarray, longest: float) -> np.ndarray:
    """Return a move of the same direction with no coordinate beyond `longest`."""
    return move / max(1.0, np.abs(move).max() / longest)
