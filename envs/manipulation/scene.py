"""The table, its cameras and what stands on it, as one MuJoCo model."""

import dataclasses
from typing import Any

from engram.envs.manipulation.arm import ACTUATORS, ARM
from engram.kernels.errors import MissingPackageError

TIMESTEP = 0.01
"""Physics step [s]."""
SUBSTEPS = 10
"""Physics steps per control step: control runs at 10 Hz."""
CAMERAS = ("top", "wrist")
KINDS = ("box", "cylinder", "sphere", "button", "cup", "mark")
"""What a policy is told a thing is, when it is given objects instead of images."""
SOLID = 'contype="1" conaffinity="3"'
GHOST = 'contype="0" conaffinity="0"'

RGB = tuple[float, float, float]
COLORS: dict[str, RGB] = {
    "red": (0.86, 0.10, 0.10),
    "green": (0.10, 0.62, 0.16),
    "blue": (0.10, 0.22, 0.90),
    "yellow": (0.96, 0.86, 0.10),
    "magenta": (0.85, 0.15, 0.80),
    "cyan": (0.10, 0.80, 0.86),
    "orange": (0.98, 0.50, 0.05),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.06),
}
"""Colours that stay apart in a picture of 64 pixels."""
GREY: RGB = (0.45, 0.45, 0.48)


@dataclasses.dataclass(frozen=True)
class Prop:
    """A thing that stands where its task puts it, as if held by an unseen hand."""

    name: str
    kind: str = "box"
    """One of KINDS."""
    rgb: RGB = GREY
    size: tuple[float, ...] = (0.02, 0.02, 0.02)
    """Half sizes of its geometry as MJCF has them [m]."""
    solid: bool = True
    """Whether it stops the gripper; a mark on the table or in the air does not."""

    @property
    def shape(self) -> str:
        """MuJoCo's type of its geometry."""
        return self.kind if self.kind in ("box", "sphere") else "cylinder"

    def geom(self, extra: str = "") -> str:
        """The geometry that is seen and touched."""
        size = " ".join(map(str, self.size))
        rgba = " ".join(map(str, self.rgb))
        touch = SOLID if self.solid else GHOST
        return (
            f'<geom name="{self.name}" type="{self.shape}" size="{size}" rgba="{rgba} 1" '
            f"{touch} {extra}/>"
        )

    def mjcf(self) -> str:
        """Its body."""
        return f'<body name="{self.name}" mocap="true" pos="0 0 -2">{self.geom()}</body>'


@dataclasses.dataclass(frozen=True)
class Block(Prop):
    """A thing that lies free: it is pushed, grasped and carried."""

    mass: float = 0.06
    """[kg]"""
    friction: float = 0.8

    def mjcf(self) -> str:
        """Its body, with a free joint."""
        # Its friction counts, whatever the other surface's is.
        surface = f'mass="{self.mass}" friction="{self.friction} 0.01 0.0003" condim="4"'
        return f'<body name="{self.name}"><freejoint/>{self.geom(surface)}</body>'


def compile_scene(props: tuple[Prop, ...]) -> Any:
    """Return the MjModel of arm, table and props.

    Raises:
        MissingPackageError: If `engram[manipulation]` is not installed.
    """
    return mujoco_module().MjModel.from_xml_string(_mjcf("".join(p.mjcf() for p in props)))


def compile_arm() -> Any:
    """Return the MjModel of the arm alone with its fingers fixed: five joints, for kinematics."""
    mujoco = mujoco_module()
    spec = mujoco.MjSpec.from_string(_mjcf(""))
    for side in ("left", "right"):
        spec.delete(spec.actuator(side))
        spec.delete(spec.joint(side))
    return spec.compile()


def mujoco_module() -> Any:
    """Import MuJoCo.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        import mujoco
    except ImportError as error:
        raise MissingPackageError("mujoco", "manipulation") from error
    return mujoco


def _mjcf(props: str) -> str:
    return f"""
<mujoco model="engram">
<compiler angle="radian" autolimits="true"/>
<option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"
        iterations="20" tolerance="1e-8"/>
<size memory="2M"/>
<visual>
  <headlight ambient="0.45 0.45 0.45" diffuse="0.35 0.35 0.35" specular="0 0 0"/>
  <map znear="0.02"/>
</visual>
<worldbody>
  <light pos="0.9 0.5 1.6" dir="-0.4 -0.3 -1" diffuse="0.4 0.4 0.4" specular="0 0 0"/>
  <camera name="top" pos="0.74 0 0.66" xyaxes="0 1 0 -0.806 0 0.591" fovy="41"/>
  <geom name="table" type="box" size="0.42 0.46 0.02" pos="0.26 0 -0.02" rgba="0.74 0.66 0.55 1"
        friction="0.6 0.005 0.0001" contype="1" conaffinity="2"/>
  <geom type="box" size="1.6 1.6 0.01" pos="0.2 0 -0.6" rgba="0.32 0.36 0.42 1"
        contype="0" conaffinity="0"/>
  {ARM}
  {props}
</worldbody>
<actuator>{ACTUATORS}</actuator>
</mujoco>"""
