"""N worlds of one MuJoCo model that MuJoCo-Warp advances where torch's tensors are.

The state is seen through torch tensors that share Warp's memory. A step is one launch of a graph
that was captured when the worlds were made, on torch's current stream: nothing is launched kernel
by kernel from Python, and nothing visits the host. Warp captures on GPUs and CPUs alike.
"""

import importlib
from itertools import combinations
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from engram.envs.warp_contacts import capsule_aligner
from engram.kernels.errors import InvalidValueError

PATROL = 256
"""Runs on a GPU between two looks at whether the worlds had room enough."""


class Room(NamedTuple):
    """What one world can hold at once."""

    contacts: int
    """Contacts; the worlds share what they have together."""
    constraints: int
    """Rows of the constraint Jacobian: edges of friction pyramids, and joint limits."""


class Physics:
    """N worlds of one model.

    Kernels are compiled when first needed and kept in the folder that `WARP_CACHE_PATH` names.

    Args:
        model: The `mujoco.MjModel`.
        worlds: Their number N.
        substeps: Timesteps of the model in one `run`.
        device: Where the worlds live.
        room: What each world can hold; memory grows with it.
        forces: Whether `run` also finds the forces of contacts on bodies.
        deterministic: Whether a GPU repeats itself bit for bit; a CPU always does.
    """

    def __init__(
        self,
        model: Any,
        worlds: int,
        *,
        substeps: int,
        device: torch.device,
        room: Room,
        forces: bool,
        deterministic: bool,
    ):
        warp: Any = importlib.import_module("warp")  # its types do not describe it
        mujoco_warp: Any = importlib.import_module("mujoco_warp")
        self.warp, self.device, self.room = warp, device, room
        on_host = device.type == "cpu"
        where = "cpu" if on_host else f"cuda:{torch.empty(0, device=device).get_device()}"
        overflows = mujoco_warp.OverflowType
        # Warp reports every kernel that it loads.
        with warp.ScopedLogLevel(warp.LOG_ERROR), warp.ScopedDevice(where):
            self.model = mujoco_warp.put_model(model)
            self.model.opt.warn_overflow = 0  # kernels would print what `watch` raises
            if deterministic:
                self.model.opt.deterministic = int(mujoco_warp.DeterminismType.ALL)
            self.model.callback.contactfilter = capsule_aligner()
            self.data = mujoco_warp.make_data(
                model, worlds, nconmax=room.contacts, njmax=room.constraints
            )

            def run() -> None:
                for _ in range(substeps):
                    mujoco_warp.step(self.model, self.data)
                if forces:
                    mujoco_warp.rne_postconstraint(self.model, self.data)

            run()  # compiles and loads what a capture could not
            with warp.ScopedCapture() as capture:
                run()
            self.graph = capture.graph
            self.data.overflow.zero_()
            warp.synchronize_device()  # Warp set all this up on a stream of its own
        self.qpos = warp.to_torch(self.data.qpos)  # [N, nq]
        self.qvel = warp.to_torch(self.data.qvel)  # [N, nv]
        self.warmstart = warp.to_torch(self.data.qacc_warmstart)  # [N, nv]
        self.control = warp.to_torch(self.data.ctrl)  # [N, nu]
        self.positions = warp.to_torch(self.data.xpos)  # [N, bodies, 3]
        self.forces = warp.to_torch(self.data.cfrc_ext)  # [N, bodies, 6]
        self.overflow = warp.to_torch(self.data.overflow)  # [N], bits of OverflowType
        # A solver that stops at its limit of iterations stops in MuJoCo too, and as quietly.
        rows = overflows.NEFC | overflows.NJMAX_NNZ
        rest = overflows.ALL & ~(rows | overflows.ITERATIONS | overflows.LS_ITERATIONS)
        self.bits = torch.tensor([int(rest), int(rows)], dtype=torch.int32, device=device)
        self.runs = 0
        self.noted: tuple[Tensor, torch.cuda.Event] | None = None

    def run(self) -> None:
        """Advance every world by `substeps` timesteps under `control`.

        Raises:
            InvalidValueError: If a world needed more than its room: at once on the CPU, within
                2 · `PATROL` runs on a GPU.
        """
        warp = self.warp
        if self.device.type == "cpu":
            warp.capture_launch(self.graph)
            self.check()
            return
        stream = torch.cuda.current_stream(self.device)
        warp.capture_launch(self.graph, stream=warp.stream_from_torch(stream))
        self.runs += 1
        if self.runs % PATROL == 0:
            self.patrol(stream)

    def check(self) -> None:
        """Refuse to go on if a world ever needed more than its room; waits for the device."""
        self.refuse(self.lacking())

    def patrol(self, stream: "torch.cuda.Stream") -> None:
        """Do as `check` for what was so one patrol ago, without waiting."""
        if self.noted is not None:
            lacking, copied = self.noted
            copied.synchronize()  # it was copied long ago
            self.refuse(lacking)
        lacking = torch.empty(2, dtype=torch.bool, pin_memory=True)
        lacking.copy_(self.lacking(), non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(stream)
        self.noted = lacking, copied

    def lacking(self) -> Bool[Tensor, "2"]:
        """Whether some world lacked room for contacts, and for constraints."""
        return ((self.overflow[:, None] & self.bits) != 0).any(0)

    def refuse(self, lacking: Bool[Tensor, "2"]) -> None:
        """Raise for the kind of room that is lacking."""
        for name, here, short in zip(Room._fields, self.room, lacking.tolist(), strict=True):
            if short:
                allowed = "more per world: one needed them, and its physics is wrong since"
                raise InvalidValueError(name, here, allowed)


def most_room(model: Any) -> Room:
    """Bound what a world of planes, spheres and capsules can ever need, given its MjModel."""
    mujoco: Any = importlib.import_module("mujoco")  # compiled: pyright finds no names in it
    shapes = mujoco.mjtGeom
    plane, sphere, capsule = (
        int(shape) for shape in (shapes.mjGEOM_PLANE, shapes.mjGEOM_SPHERE, shapes.mjGEOM_CAPSULE)
    )
    assert set(model.geom_type.tolist()) <= {plane, sphere, capsule}, "bound the others first"
    assert model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL
    assert model.neq == 0 and not model.dof_frictionloss.any() and model.ntendon == 0
    contacts, constraints = 0, int(model.jnt_limited.sum())
    kinds, dims = model.geom_type.tolist(), model.geom_condim.tolist()
    own, other, body = model.geom_contype, model.geom_conaffinity, model.geom_bodyid
    for a, b in combinations(range(model.ngeom), 2):
        if body[a] == body[b] or not (own[a] & other[b] or own[b] & other[a]):
            continue
        points = 1 if sphere in (kinds[a], kinds[b]) else 2
        contacts += points
        constraints += points * max(1, 2 * (max(dims[a], dims[b]) - 1))
    return Room(max(contacts, 1), max(constraints, 1))
