"""N worlds of one MuJoCo model that MuJoCo-Warp advances where torch's tensors are.

The state is seen through torch tensors that share Warp's memory. A step is one launch of a graph
that was captured when the worlds were made, on torch's current stream: no kernel is launched from
Python and nothing visits the host. Warp captures graphs on a GPU and on the CPU alike.
"""

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from engram.kernels.errors import InvalidValueError

if TYPE_CHECKING:
    import mujoco

PATROL = 256
"""Launches on a GPU between two looks at whether the worlds had room enough."""


class Room(NamedTuple):
    """What one world can hold at once."""

    contacts: int
    """Contacts. The worlds share what all of them have."""
    constraints: int
    """Rows of the constraint Jacobian: contacts with their friction, and joint limits."""


class Physics:
    """N worlds of one model.

    Kernels are compiled when first used, and kept in the folder that `WARP_CACHE_PATH` names.

    Args:
        model: The model; its geoms are planes, spheres and capsules.
        worlds: Their number N.
        substeps: Steps of the model's timestep in one `run`.
        device: Where the worlds live.
        room: What each world can hold; what it can ever need where None. More costs memory.
        forces: Whether `run` computes the forces of contacts on bodies.
    """

    def __init__(
        self,
        model: "mujoco.MjModel",
        worlds: int,
        *,
        substeps: int,
        device: torch.device,
        room: Room | None = None,
        forces: bool = False,
    ):
        import mujoco_warp
        import warp

        self.device = device
        self.room = room or most_room(model)
        where = "cpu" if device.type == "cpu" else f"cuda:{torch.empty(0, device=device).get_device()}"
        # Warp would report every kernel that it loads.
        with warp.ScopedLogLevel(warp.LOG_ERROR), warp.ScopedDevice(where):
            self.model = mujoco_warp.put_model(model)
            # What it would print from inside a kernel, `watch` raises.
            self.model.opt.warn_overflow = 0
            self.data = mujoco_warp.make_data(
                model, worlds, nconmax=self.room.contacts, njmax=self.room.constraints
            )

            def run() -> None:
                for _ in range(substeps):
                    mujoco_warp.step(self.model, self.data)
                if forces:
                    mujoco_warp.rne_postconstraint(self.model, self.data)

            run()  # a capture cannot compile
            with warp.ScopedCapture() as capture:
                run()
            self.graph = capture.graph
            self.data.overflow.zero_()
            warp.synchronize_device()  # Warp made all this on a stream of its own
        harmless = mujoco_warp.OverflowType.ITERATIONS | mujoco_warp.OverflowType.LS_ITERATIONS
        self.fatal = int(mujoco_warp.OverflowType.ALL & ~harmless)
        self.qpos = warp.to_torch(self.data.qpos)  # [N, nq]
        self.qvel = warp.to_torch(self.data.qvel)  # [N, nv]
        self.warmstart = warp.to_torch(self.data.qacc_warmstart)  # [N, nv]
        self.control = warp.to_torch(self.data.ctrl)  # [N, nu]
        self.positions = warp.to_torch(self.data.xpos)  # [N, bodies, 3]
        self.forces = warp.to_torch(self.data.cfrc_ext)  # [N, bodies, 6]
        self.overflow = warp.to_torch(self.data.overflow)  # [N]
        self.runs = 0
        self.noted: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def run(self) -> None:
        """Advance every world by `substeps` timesteps under `control`.

        Raises:
            InvalidValueError: If a world had more contacts or constraints than there was room
                for; on a GPU up to 2 · `PATROL` runs later.
        """
        import warp

        if self.device.type == "cpu":
            warp.capture_launch(self.graph)
        else:
            stream = torch.cuda.current_stream(self.device)
            warp.capture_launch(self.graph, stream=warp.stream_from_torch(stream))
        self.watch()

    def watch(self) -> None:
        """Look for overflow: at once on the CPU, now and then and without waiting on a GPU."""
        if self.device.type == "cpu":
            self.check()
            return
        self.runs += 1
        if self.runs % PATROL:
            return
        if self.noted is not None:
            flag, copied = self.noted
            copied.synchronize()  # `PATROL` runs ago: it has long been copied
            self._refuse(bool(flag))
        flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        flag.copy_(((self.overflow & self.fatal) != 0).any(), non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self.device))
        self.noted = flag, copied

    def check(self) -> None:
        """Refuse to go on if a world ever ran out of room; waits for the device."""
        self._refuse(bool(((self.overflow & self.fatal) != 0).any()))

    def _refuse(self, overflowed: bool) -> None:
        if overflowed:
            contacts, constraints = self.room
            raise InvalidValueError(
                "room",
                f"{contacts} contacts, {constraints} constraints",
                "more: a world needed it, and its physics since are wrong",
            )


def most_room(model: "mujoco.MjModel") -> Room:
    """Bound what a world of planes, spheres and capsules can ever hold."""
    import mujoco

    shapes = mujoco.mjtGeom
    plane, sphere, capsule = (
        int(shape) for shape in (shapes.mjGEOM_PLANE, shapes.mjGEOM_SPHERE, shapes.mjGEOM_CAPSULE)
    )
    assert set(model.geom_type.tolist()) <= {plane, sphere, capsule}, "bound other shapes first"
    assert model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL and model.neq == 0
    contacts, constraints = 0, int(model.jnt_limited.sum() + (model.dof_frictionloss > 0).sum())
    for a, b in combinations(range(model.ngeom), 2):
        touch = (
            model.geom_contype[a] & model.geom_conaffinity[b]
            or model.geom_contype[b] & model.geom_conaffinity[a]
        )
        if not touch or model.geom_bodyid[a] == model.geom_bodyid[b]:
            continue
        points = 1 if sphere in (model.geom_type[a], model.geom_type[b]) else 2
        friction = max(model.geom_condim[a], model.geom_condim[b]) - 1
        contacts += points
        constraints += points * max(1, 2 * friction)
    return Room(max(contacts, 1), int(max(constraints, 1)))


def assets() -> Path:
    """Return the folder of Gymnasium's MuJoCo models."""
    import gymnasium

    return Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
