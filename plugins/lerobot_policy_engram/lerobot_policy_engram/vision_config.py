"""Which image encoder `engram_vla` sees with, as it stands in LeRobot's config.json."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class VisionConfig:
    """An image encoder.

    A value on the command line is written `--policy.vision.name=transformer`.
    """

    name: str = "keypoints"
    """A file in engram's `configs/vision`, but `vlm`: `conv`, `keypoints` or `transformer`, which
    learn from nothing, or `pretrained`, an encoder of timm or transformers. Policies saved before
    there was a choice load with `conv`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What to change in the preset: `{"path": FOLDER}` says where a pretrained encoder lies,
    `{"trained": true}` that it learns, too. The weights of one that does not are left out of
    checkpoints, which hold a fingerprint of its folder instead."""
