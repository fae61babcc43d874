"""Pictures of a world by MuJoCo's classic renderer, one OpenGL context per process and size.

A context costs a hundred times a picture, so all worlds of a process share it: their models hold no
meshes and no textures, and the context depends on nothing else. Small pictures leave out what
software rendering spends its time on: shadows, reflections, sky and multisampling.

`MUJOCO_GL` chooses the backend as everywhere (`egl`, the default here, `osmesa` or `glfw`); it may
be set before or after MuJoCo is imported. `LP_NUM_THREADS` of Mesa's software renderer is set to 0
unless it is set already: its threads cost more than they save on small pictures.
"""

import functools
import importlib
import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from engram.envs.manipulation.scene import BACKENDS, mujoco_module
from engram.envs.manipulation.world import World
from engram.kernels.errors import InvalidValueError

_COARSE = '<quality shadowsize="0" offsamples="0" numslices="12" numstacks="6" numquads="1"/>'
_FINE = '<quality shadowsize="0" offsamples="4" numslices="32" numstacks="16" numquads="1"/>'
_GEOMS = 200


class Camera:
    """Takes square pictures with side `size` [pixels].

    Args:
        size: Side of a picture.
        fine: Whether edges are smoothed, for people to look at.
    """

    def __init__(self, size: int, *, fine: bool = False):
        mujoco = self.mujoco = mujoco_module()
        self.size = size
        backend = os.environ.get("MUJOCO_GL", "").lower() or "egl"
        if backend not in BACKENDS:
            raise InvalidValueError("MUJOCO_GL", backend, BACKENDS)
        os.environ.setdefault("LP_NUM_THREADS", "0")
        self.context = importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
        self.context.make_current()
        model = mujoco.MjModel.from_xml_string(
            f'<mujoco><visual><global offwidth="{size}" offheight="{size}"/>'
            f"{_FINE if fine else _COARSE}</visual></mujoco>"
        )
        self.buffers = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.buffers)
        self.scene = mujoco.MjvScene(model, maxgeom=_GEOMS)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE"):
            self.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self.options = mujoco.MjvOption()
        self.view = mujoco.MjvCamera()
        self.view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.window = mujoco.MjrRect(0, 0, size, size)
        self.pixels = np.empty((size, size, 3), dtype=np.uint8)

    def picture(self, world: World, camera: str) -> UInt8[np.ndarray, "S S 3"]:
        """Return what a camera of the world sees, row by row from above."""
        mujoco = self.mujoco
        self.context.make_current()
        self.view.fixedcamid = world.model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            world.model, world.data, self.options, None, self.view, everything, self.scene
        )
        mujoco.mjr_render(self.window, self.scene, self.buffers)
        mujoco.mjr_readPixels(self.pixels, None, self.window, self.buffers)
        return self.pixels[::-1].copy()


def shared_camera(size: int, *, fine: bool = False) -> Camera:
    """Return the camera of this process, made at the first call."""
    return _camera(size, fine, os.getpid())


@functools.cache
def _camera(size: int, fine: bool, process: int) -> Any:
    # A context does not survive a fork: the child makes its own.
    del process
    return Camera(size, fine=fine)
