"""Memory tasks as batched environments; importing this registers them with Gymnasium."""

import importlib
from typing import TYPE_CHECKING, Any

from engram.envs.registration import ENVIRONMENTS, register
from engram.envs.vector import BatchedEnv, Step, Stream, Transition

if TYPE_CHECKING:
    from engram.envs.adapter import GymnasiumEnv
    from engram.envs.ballet import Ballet
    from engram.envs.chain import ChainBit
    from engram.envs.concentration import Concentration
    from engram.envs.manipulation.batched import Manipulation
    from engram.envs.maniskill import ManiSkill
    from engram.envs.masked_mujoco import MaskedMujoco
    from engram.envs.repeat import RepeatFirst, RepeatPrevious
    from engram.envs.street import Street
    from engram.envs.tmaze import TMaze
    from engram.envs.warp_mujoco import WarpMujoco

__all__ = [
    "Ballet",
    "BatchedEnv",
    "ChainBit",
    "Concentration",
    "GymnasiumEnv",
    "ManiSkill",
    "Manipulation",
    "MaskedMujoco",
    "RepeatFirst",
    "RepeatPrevious",
    "Step",
    "Stream",
    "Street",
    "TMaze",
    "Transition",
    "WarpMujoco",
]

register()


def __getattr__(name: str) -> Any:
    """Load an environment's module when its class is first asked for."""
    module = {**ENVIRONMENTS, "GymnasiumEnv": "engram.envs.adapter"}.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
