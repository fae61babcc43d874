"""The table, its cameras and what stands on it, as one MuJoCo model."""

import os
from typing import Any

from engram.envs.manipulation.arm import ACTUATORS, ARM
from engram.envs.manipulation.props import Prop
from engram.kernels.errors import InvalidValueError, MissingPackageError

TIMESTEP = 0.005
"""Physics step [s]."""
SUBSTEPS = 20
"""Physics steps per control step: control runs at 10 Hz."""
CAMERAS = ("top", "wrist")
BACKENDS = ("egl", "osmesa", "glfw")
"""Ways to OpenGL, as MUJOCO_GL names them."""


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
        InvalidValueError: If the environment names an unknown backend.
    """
    try:
        import mujoco
    except ImportError as error:
        raise MissingPackageError("mujoco", "manipulation") from error
    except RuntimeError as error:
        raise InvalidValueError("MUJOCO_GL", os.environ.get("MUJOCO_GL"), BACKENDS) from error
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
