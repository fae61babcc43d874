"""Differential inverse kinematics of the arm, by the mink package.

One quadratic programme per step: the joint velocities that bring the hand nearest to a pose,
within the limits of position and speed, with the rest posture as the tie-breaker. mink is by Kevin
Zakka (https://github.com/kevinzakka/mink).
"""

import numpy as np

from engram.envs.manipulation.arm import HOME_JOINTS, JOINTS, SPEED
from engram.envs.manipulation.scene import compile_arm
from engram.envs.manipulation.world import PERIOD
from engram.kernels.errors import MissingPackageError

_DOWN = np.diag([-1.0, 1.0, -1.0])
"""Orientation of a hand that points down with its fingers apart along y."""


class Kinematics:
    """Solves for the arm alone; it knows nothing of the world.

    Raises:
        MissingPackageError: If `engram[manipulation]` is not installed.
    """

    def __init__(self):
        try:
            import mink
        except ImportError as error:
            raise MissingPackageError("mink", "manipulation") from error
        model = compile_arm()
        self.mink = mink
        self.configuration = mink.Configuration(model)
        self.rotation = mink.SO3.from_matrix(_DOWN)
        self.frame = mink.FrameTask(
            "tcp", "site", position_cost=1.0, orientation_cost=0.3, lm_damping=1e-4
        )
        self.posture = mink.PostureTask(model, cost=1e-3)
        self.posture.set_target(np.array(HOME_JOINTS))
        self.limits = [
            mink.ConfigurationLimit(model),
            mink.VelocityLimit(model, dict.fromkeys(JOINTS, SPEED)),
        ]

    def solve(self, joints: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Return the turn of each joint [rad] toward a position of the gripper, in one step.

        Args:
            joints: Joint angles to start from, within their limits [rad].
            position: Where the point between the finger tips shall be [m].
        """
        self.configuration.update(joints)
        pose = self.mink.SE3.from_rotation_and_translation(self.rotation, position)
        self.frame.set_target(pose)
        velocity = self.mink.solve_ik(
            self.configuration,
            (self.frame, self.posture),
            PERIOD,
            "daqp",
            damping=1e-6,
            limits=self.limits,
        )
        return velocity * PERIOD

    def position(self, joints: np.ndarray) -> np.ndarray:
        """Where the gripper is for given joint angles [m]."""
        self.configuration.update(joints)
        return self.configuration.get_transform_frame_to_world("tcp", "site").translation()
