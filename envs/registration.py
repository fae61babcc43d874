"""The environments by name, and their ids `engram/<name>-v0` in Gymnasium's registry."""

import gymnasium

ENVIRONMENTS = {
    "Ballet": "engram.envs.ballet",
    "ChainBit": "engram.envs.chain",
    "Concentration": "engram.envs.concentration",
    "ManiSkill": "engram.envs.maniskill",
    "Manipulation": "engram.envs.manipulation.batched",
    "MaskedMujoco": "engram.envs.masked_mujoco",
    "RepeatFirst": "engram.envs.repeat",
    "RepeatPrevious": "engram.envs.repeat",
    "Street": "engram.envs.street",
    "TMaze": "engram.envs.tmaze",
    "WarpMujoco": "engram.envs.warp_mujoco",
}
"""Class name → module. Modules load when an environment is made."""


def register() -> None:
    """Register every environment for `gymnasium.make_vec`, once."""
    for name, module in ENVIRONMENTS.items():
        if (key := f"engram/{name}-v0") not in gymnasium.registry:
            gymnasium.register(key, vector_entry_point=f"{module}:{name}")
