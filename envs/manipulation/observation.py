"""What a policy is given of a world: pictures, its own body, objects, words, the hidden fact."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from gymnasium import spaces
from jaxtyping import Float

from engram.envs.manipulation.arm import JOINTS
from engram.envs.manipulation.camera import shared_camera
from engram.envs.manipulation.control import Control
from engram.envs.manipulation.props import KINDS
from engram.envs.manipulation.scene import CAMERAS
from engram.envs.manipulation.task import Task, check_between
from engram.envs.manipulation.world import World
from engram.kernels.errors import InvalidValueError

FEATURES = 3 + 3 + len(KINDS) + 1
"""Numbers per object: position from the gripper [m], colour, kind one-hot, 1 where visible."""
WORDS = 96
"""Bytes of an instruction."""


@dataclasses.dataclass(frozen=True)
class Senses:
    """Which parts an observation has. Proprioception is always there."""

    cameras: tuple[str, ...] = ("top",)
    """Which of "top" and "wrist" give a picture."""
    size: int = 64
    """Side of a picture [pixels]."""
    objects: bool = False
    """Whether the visible props are listed as numbers, `[K, FEATURES]`; zeros where hidden."""
    oracle: bool = False
    """Whether the hidden fact is told."""
    instruction: bool = False
    """Whether the instruction is given, as UTF-8 bytes padded with zeros."""

    def __post_init__(self):
        check_cameras(self.cameras)
        check_between(16, 512, "a whole number of pixels", size=self.size)

    def space(self, task: Task) -> spaces.Dict:
        """Return the space of a task's observations."""
        picture = spaces.Box(0, 255, (self.size, self.size, 3), dtype=np.uint8)
        parts: dict[str, spaces.Space] = dict.fromkeys(self.cameras, picture)
        parts["proprioception"] = _numbers(len(JOINTS) + 1 + 3 + 3)
        if self.objects:
            parts["objects"] = _numbers(len(task.props), FEATURES)
        if self.oracle:
            parts["oracle"] = _numbers(task.hints)
        if self.instruction:
            parts["instruction"] = spaces.Box(0, 255, (WORDS,), dtype=np.uint8)
        return spaces.Dict(parts)

    def observe(self, world: World, task: Task, control: Control) -> dict[str, np.ndarray]:
        """Return what is perceived now; nothing in it is changed later."""
        seen = {name: shared_camera(self.size).picture(world, name) for name in self.cameras}
        # An action adds to where the arm steers for: without the lead, what is right is not seen.
        body = (*world.joints, world.opening, *world.tcp, *control.lead)
        seen["proprioception"] = np.array(body, dtype=np.float32)
        if self.objects:
            seen["objects"] = listed(world, task.alike)
        if self.oracle:
            seen["oracle"] = task.hidden()
        if self.instruction:
            seen["instruction"] = encode(task.instruction)
        return seen


def check_cameras(cameras: Sequence[str]) -> tuple[str, ...]:
    """Return the names of cameras.

    Raises:
        InvalidValueError: If they are no sequence of different cameras.
    """
    # A string is a sequence of names too, of one letter each.
    if isinstance(cameras, str) or not isinstance(cameras, Sequence):
        raise InvalidValueError("cameras", cameras, f"a sequence of names from {CAMERAS}")
    if unknown := [name for name in cameras if name not in CAMERAS]:
        raise InvalidValueError("cameras", unknown[0], CAMERAS)
    if len(set(cameras)) < len(cameras):
        raise InvalidValueError("cameras", cameras, f"different names from {CAMERAS}")
    return tuple(cameras)


def listed(world: World, alike: Sequence[str] = ()) -> Float[np.ndarray, "K F"]:
    """Return the props as numbers, zeros for those that are not shown.

    Args:
        world: Where they are.
        alike: Props that are listed from right to left, seen from the arm, wherever they have
            moved.
    """
    table = np.zeros((len(world.props), FEATURES), dtype=np.float32)
    tcp = world.tcp
    turn = iter(sorted(alike, key=lambda name: world.position(name)[[1, 0]].round(4).tolist()))
    for row, name in zip(table, world.props, strict=True):
        name = next(turn) if name in alike else name
        if name in world.shown:
            row[:3] = world.position(name) - tcp
            row[3:6] = world.model.geom_rgba[world.geom[name], :3]
            row[6 + KINDS.index(world.props[name].kind)] = 1
            row[-1] = 1
    return table


def encode(instruction: str) -> np.ndarray:
    """Return an instruction as `[WORDS]` bytes."""
    words = instruction.encode()
    assert len(words) <= WORDS, f"{len(words)} bytes: {instruction}"
    return np.frombuffer(words.ljust(WORDS, b"\0"), dtype=np.uint8).copy()


def _numbers(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, dtype=np.float32)
