"""One scene in motion: what stands where, what the gripper touches, what the servos are told."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engram.envs.manipulation.arm import GRIPPER_GEOMS, HOME_JOINTS, JOINTS, LOWER, OPENING, UPPER
from engram.envs.manipulation.props import RGB, Block, Button, Cover, Prop
from engram.envs.manipulation.scene import SUBSTEPS, TIMESTEP, compile_scene, mujoco_module

PERIOD = SUBSTEPS * TIMESTEP
"""Time between two actions [s]."""
LEASH = 0.25
"""How far the servos' set points may be from the joints [rad]; it bounds the force of a push."""
_DOWN = 0.008
"""How deep a button counts as pressed [m]."""
_LOOKS = 2
"""Times per control step that contacts are read: a touch in passing counts too."""


class World:
    """The physics of one environment.

    Props are named; positions are `[3]` arrays [m] in the frame of the arm's base, z above the
    table top. The model belongs to this world alone: tasks change colours and friction in it.

    Args:
        props: Everything on the table besides the arm.

    Raises:
        MissingPackageError: If `engram[manipulation]` is not installed.
    """

    def __init__(self, props: Sequence[Prop]):
        self.mujoco = mujoco_module()
        self.props = {prop.name: prop for prop in props}
        assert len(self.props) == len(props), "props need names of their own"
        self.model: Any = compile_scene(tuple(props))
        self.data: Any = self.mujoco.MjData(self.model)
        self.geom = {name: self.model.geom(name).id for name in self.props}
        self.body = {name: self.model.body(name).id for name in self.props}
        self.jointed = [n for n, p in self.props.items() if isinstance(p, Block | Button | Cover)]
        self.joint = {name: self.model.joint(name).id for name in self.jointed}
        self.address = {name: int(self.model.jnt_qposadr[j]) for name, j in self.joint.items()}
        self.freedom = {name: int(self.model.jnt_dofadr[j]) for name, j in self.joint.items()}
        self.buttons = [name for name, prop in self.props.items() if isinstance(prop, Button)]
        roots = self.model.body_rootid[self.model.geom_bodyid]
        self.geoms = {name: np.flatnonzero(roots == body) for name, body in self.body.items()}
        self.owner = np.full(self.model.ngeom, -1)
        for index, geoms in enumerate(self.geoms.values()):
            self.owner[geoms] = index
        self.gripper = len(self.props)
        self.owner[[self.model.geom(name).id for name in GRIPPER_GEOMS]] = self.gripper
        self.names = tuple(self.props)
        self.site = self.model.site("tcp").id
        self.hinges = [int(self.model.joint(name).qposadr[0]) for name in JOINTS]
        self.fingers = [int(self.model.joint(name).qposadr[0]) for name in ("left", "right")]
        self.rgba = self.model.geom_rgba.copy()
        self.friction = self.model.geom_friction.copy()
        self.bits = np.stack([self.model.geom_contype, self.model.geom_conaffinity])
        self.shown: set[str] = set()
        self.touched: set[str] = set()
        """Props that the gripper touched during the last control step."""
        self.pressed: set[str] = set()
        """Buttons that were down during the last control step, whoever pressed them."""

    def reset(self) -> None:
        """Bring the arm home, open its gripper and clear the table."""
        self.mujoco.mj_resetData(self.model, self.data)
        self.model.geom_rgba[:] = self.rgba
        self.model.geom_friction[:] = self.friction
        self.model.geom_contype[:], self.model.geom_conaffinity[:] = self.bits
        self.data.qpos[self.hinges] = self.data.act[:] = HOME_JOINTS
        self.data.qpos[self.fingers] = self.data.ctrl[len(JOINTS) :] = OPENING / 2
        self.touched, self.pressed = set(), set()
        self.shown = set(self.props)
        for name in self.props:
            self.hide(name)
        self.settle()

    def show(
        self, name: str, position: Sequence[float | int] | np.ndarray, rgb: RGB | None = None
    ) -> None:
        """Put a prop somewhere, at rest, and colour it if told."""
        if name in self.jointed:
            self._rest(name, position)
        if not isinstance(self.props[name], Block):
            self.data.mocap_pos[self.model.body_mocapid[self.body[name]]] = position
        if rgb is not None:
            self.color(name, rgb)
        self.model.geom_rgba[self.geoms[name], 3] = self.rgba[self.geoms[name], 3]
        self.shown.add(name)

    def hide(self, name: str) -> None:
        """Take a prop away: it is neither seen nor felt. A block falls until it is shown again."""
        if name in self.shown:
            # Apart from each other: what has joints would collide.
            away = (float(self.names.index(name)), 0.0, -2.0)
            if isinstance(self.props[name], Block):
                self._rest(name, away)
            else:
                self.data.mocap_pos[self.model.body_mocapid[self.body[name]]] = away
            self.model.geom_rgba[self.geoms[name], 3] = 0
            self.shown.remove(name)

    def move(self, name: str, position: Sequence[float | int] | np.ndarray) -> None:
        """Carry a shown prop elsewhere; its joint keeps its place."""
        assert name in self.shown, name
        self.data.mocap_pos[self.model.body_mocapid[self.body[name]]] = position

    def color(self, name: str, rgb: RGB) -> None:
        """Paint a prop."""
        self.model.geom_rgba[self.geom[name], :3] = rgb

    def harden(self, name: str, solid: bool) -> None:
        """Let the gripper touch a prop, or pass through it."""
        geoms = self.geoms[name]
        contype, conaffinity = self.bits[:, geoms] if solid else (0, 0)
        self.model.geom_contype[geoms] = contype
        self.model.geom_conaffinity[geoms] = conaffinity

    def latch(self, name: str, shut: bool) -> None:
        """Hold a cover down, or let it be lifted."""
        prop = self.props[name]
        assert isinstance(prop, Cover), name
        self.model.jnt_range[self.joint[name], 1] = 0.002 if shut else prop.rise

    def lift(self, name: str) -> float:
        """How far a cover has been lifted, or a button pressed (negative) [m]."""
        return float(self.data.qpos[self.address[name]])

    def speed(self, name: str) -> float:
        """How fast a block moves [m/s]."""
        at = self.freedom[name]
        return float(np.linalg.norm(self.data.qvel[at : at + 3]))

    def position(self, name: str) -> np.ndarray:
        """Where the middle of a prop is [m]."""
        return self.data.geom_xpos[self.geom[name]].copy()

    @property
    def tcp(self) -> np.ndarray:
        """Where the point between the finger tips is [m]."""
        return self.data.site_xpos[self.site].copy()

    @property
    def joints(self) -> np.ndarray:
        """The arm's joint angles [rad]."""
        return self.data.qpos[self.hinges]

    @property
    def set_points(self) -> np.ndarray:
        """The joint angles that the servos hold [rad]."""
        return self.data.act.copy()

    @property
    def opening(self) -> float:
        """The gap between the fingers [m]."""
        return float(self.data.qpos[self.fingers].sum())

    def command(self, turn: np.ndarray, opening: float) -> None:
        """Tell the servos for one control step.

        Args:
            turn: How far each set point moves, evenly [rad]; it stops at the joint's limit.
            opening: The gap that the fingers close or open to [m].
        """
        act = self.data.act
        joints = self.joints
        np.clip(act, joints - LEASH, joints + LEASH, out=act)
        np.clip(act, LOWER, UPPER, out=act)
        self.data.ctrl[: len(JOINTS)] = turn / PERIOD
        self.data.ctrl[len(JOINTS) :] = opening / 2

    def step(self) -> None:
        """Advance physics by one control step and note what the gripper touched."""
        self.touched, self.pressed = set(), set()
        for _ in range(_LOOKS):
            self.mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS // _LOOKS)
            owners = self.owner[self.data.contact.geom]
            for first, second in owners[(owners == self.gripper).any(axis=1)]:
                other = second if first == self.gripper else first
                if 0 <= other < self.gripper:
                    self.touched.add(self.names[other])
            self.pressed.update(n for n in self.buttons if self.lift(n) < -_DOWN)
        self.settle()

    def _rest(self, name: str, position: Sequence[float | int] | np.ndarray) -> None:
        """Bring the joint of a prop to rest: a block's at a position, another's where it began."""
        at, freedom = self.address[name], self.freedom[name]
        if isinstance(self.props[name], Block):
            self.data.qpos[at : at + 7] = (*position, 1, 0, 0, 0)
            self.data.qvel[freedom : freedom + 6] = 0
        else:
            self.data.qpos[at] = self.data.qvel[freedom] = 0

    def settle(self) -> None:
        """Bring everything that follows from the joints up to date; physics leaves it behind."""
        self.mujoco.mj_kinematics(self.model, self.data)
        self.mujoco.mj_camlight(self.model, self.data)
