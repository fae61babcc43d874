"""Contact frames of capsules on planes, as MuJoCo has them.

The friction cone is a pyramid whose edges follow the tangents of the contact frame. MuJoCo lays the
first tangent along the capsule. MuJoCo-Warp 4.0 does so only where the capsule is less than 60° off
the plane, and takes a fixed direction elsewhere; on an ant's steep ankles the accelerations then
differ by up to a third. This lays the tangent as MuJoCo does, through MuJoCo-Warp's own hook for
contacts.
"""

import importlib
from collections.abc import Callable
from typing import Any, no_type_check


def capsule_aligner() -> Callable[[Any, Any], None]:
    """Return a contact filter, of `mujoco_warp.Model` and `Data`, that lays the tangents."""
    warp: Any = importlib.import_module("warp")
    kernel = _align_kernel()

    def align(model: Any, data: Any) -> None:
        contact = data.contact
        seen = [model.geom_type, data.geom_xmat, data.nacon, contact.geom, contact.worldid]
        warp.launch(kernel, dim=data.naconmax, inputs=seen, outputs=[contact.frame])

    return align


@no_type_check  # what follows is Warp's language
def _align_kernel() -> Any:
    wp: Any = importlib.import_module("warp")
    mujoco: Any = importlib.import_module("mujoco")
    plane = wp.constant(int(mujoco.mjtGeom.mjGEOM_PLANE))
    capsule = wp.constant(int(mujoco.mjtGeom.mjGEOM_CAPSULE))

    @wp.kernel(module="unique", enable_backward=False)
    def align(
        geom_type: wp.array[int],  # type: ignore
        geom_xmat: wp.array2d[wp.mat33],  # type: ignore
        nacon: wp.array[int],  # type: ignore
        geom: wp.array[wp.vec2i],  # type: ignore
        worldid: wp.array[int],  # type: ignore
        frame: wp.array[wp.mat33],  # type: ignore
    ):
        contact = wp.tid()
        if contact >= nacon[0]:
            return
        pair = geom[contact]
        if geom_type[pair[0]] != plane or geom_type[pair[1]] != capsule:
            return
        normal = frame[contact][0]
        turned = geom_xmat[worldid[contact], pair[1]]
        axis = wp.vec3(turned[0, 2], turned[1, 2], turned[2, 2])
        along = axis - normal * wp.dot(normal, axis)
        length = wp.length(along)
        if length < 1.0e-6:  # upright: any tangent is as good
            return
        first = along / length
        frame[contact] = wp.matrix_from_rows(normal, first, wp.cross(normal, first))

    return align
