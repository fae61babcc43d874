"""The smallest policies of `--policy.type=engram_vla`, and what they see."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.policies.factory import make_policy
from torch import Tensor

from lerobot_policy_engram import EngramVLAConfig, MemoryConfig

IMAGE, STATE = "observation.images.top", "observation.state"
TASK = "pick up the cube"
TINY = {
    "chunk_size": 4,
    "n_action_steps": 2,
    "image_size": 32,
    "perceptual_width": 8,
    "cognitive_width": 16,
    "expert_width": 16,
    "expert_depth": 1,
    "denoising_steps": 2,
    "repeats": 1,
    "device": "cpu",
    "push_to_hub": False,
}
MEMORIES = {
    "memoryvla": {"capacity": 3},
    "gru": {},
    "hcam": {"memory": {"layer": {"chunk": 2, "capacity": 2}}},
    "bank_usage": {"capacity": 2},
    "none": {},
}


def build(dataset: Callable[..., Any], name: str = "memoryvla", **settings: Any) -> Any:
    memory = MemoryConfig(name, MEMORIES[name], width=16, window=5)
    config = EngramVLAConfig(**{**TINY, "memory": memory, "moments": 3, **settings})
    torch.manual_seed(0)
    return make_policy(config, ds_meta=dataset().meta)


def samples(policy: Any, dataset: Callable[..., Any], config: Any = None) -> Any:
    stamps = resolve_delta_timestamps(config or policy.config, dataset().meta)
    return dataset(delta_timestamps=stamps)


def observe(rows: int = 2) -> dict[str, Any]:
    return {
        IMAGE: torch.rand(rows, 3, 32, 32),
        STATE: torch.rand(rows, 4),
        "task": [TASK] * rows,
    }


def act(policy: Any, observation: dict[str, Any]) -> Tensor:
    torch.manual_seed(1)  # of the noise
    with torch.inference_mode():
        return policy.select_action(observation)


def forget(folder: Path, key: str) -> None:
    """Take a key out of a saved policy's settings, as if it had been saved before there was one."""
    settings = json.loads((folder / "config.json").read_text())
    del settings[key]
    (folder / "config.json").write_text(json.dumps(settings))


def overridden(folder: Path, dataset: Callable[..., Any], override: str) -> Any:
    """Load a policy as LeRobot's commands do, with a setting changed."""
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=[override])
    config.pretrained_path = folder
    return make_policy(config, ds_meta=dataset().meta).eval()
