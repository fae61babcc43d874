"""`--policy.type=engram_vla`: engram's own vision-language-action policy."""

from dataclasses import dataclass, field, replace
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig
from lerobot.utils.constants import OBS_STATE

from engram.kernels.errors import InvalidValueError
from lerobot_policy_engram.memory_config import MemoryConfig
from lerobot_policy_engram.vision_config import VisionConfig


@PreTrainedConfig.register_subclass("engram_vla")
@dataclass
class EngramVLAConfig(PreTrainedConfig):
    """Settings of a policy with a memory between perception and actions."""

    memory: MemoryConfig = field(default_factory=MemoryConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    moments: int = 4
    """Frames at the end of a window whose actions are learnt. Those before only fill the memory,
    which a window finds empty wherever in the episode it begins."""
    chunk_size: int = 8
    """Actions drawn at once."""
    n_action_steps: int = 4
    """Actions of a chunk that are executed before the next is drawn."""
    image_size: int = 64
    """Height and width that images are resized to [pixels], a multiple of 16."""
    words: list[str] = field(default_factory=list)
    """Words of the instructions; those of the dataset's tasks where empty."""
    instruction_length: int = 24
    """Most words in an instruction."""
    perceptual_width: int = 64
    """Features of a perceptual token."""
    cognitive_width: int = 128
    """Features of the cognitive token."""
    expert_width: int = 128
    """Features inside the action expert."""
    expert_depth: int = 4
    """Blocks of the action expert."""
    looks: int = 1
    """Layers in which the cognitive token reads what is seen once more, after the memory. Policies
    saved before there were any load with 0."""
    modulated: bool = False
    """Whether the memory scales and shifts the expert's blocks, instead of taking the place of
    what is seen."""
    diffusion: bool = False
    """Whether actions are drawn by diffusion (DDIM); by flow matching otherwise."""
    denoising_steps: int = 10
    """Calls of the expert per draw."""
    guidance: float = 1.0
    """Strength of classifier-free guidance; 1 is none."""
    temperature: float = 1.0
    """Of drawing actions; below 1 the likelier are favoured (0.5 in `engram clone`)."""
    repeats: int = 2
    """Draws of noise per learnt frame."""
    past: float = 0.0
    """Weight of a loss that asks the memory for what was seen up to 32 frames ago, as far as the
    window goes back, or the chunk of a stream: images of 8 x 8. It needs no label. What answers
    is a part of the policy, so a saved one loads with a weight if it learnt with one."""

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ENV": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.QUANTILES,
        }
    )
    optimizer_lr: float = 1e-3
    optimizer_weight_decay: float = 1e-4
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 100
    scheduler_decay_steps: int = 30_000
    scheduler_decay_lr: float = 1e-4

    def __post_init__(self) -> None:
        """Check what no part of the policy checks itself.

        Raises:
            InvalidValueError: If a number cannot work.
        """
        super().__post_init__()
        self.memory.check(self.n_obs_steps)
        if self.n_obs_steps != 1:
            raise InvalidValueError("policy.n_obs_steps", self.n_obs_steps, "1: the rest is memory")
        if not 1 <= self.moments <= self.memory.window:
            allowed = f"1 … policy.memory.window = {self.memory.window}"
            raise InvalidValueError("policy.moments", self.moments, allowed)
        for name in ("repeats", "expert_depth", "expert_width", "instruction_length"):
            if getattr(self, name) < 1:
                raise InvalidValueError(f"policy.{name}", getattr(self, name), "1 or more")
        if not 0 <= self.past < float("inf"):
            raise InvalidValueError("policy.past", self.past, "finite, 0 or more")
        if self.looks < 0:
            raise InvalidValueError("policy.looks", self.looks, "0 or more")
        if self.image_size < 16 or self.image_size % 16:
            raise InvalidValueError("policy.image_size", self.image_size, "multiples of 16")

    @property
    def observation_delta_indices(self) -> list[int]:
        """The window of frames that a training sample brings, the present one last."""
        return list(range(1 - self.memory.window, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        """The actions from the first learnt frame on to the end of the last one's chunk."""
        return list(range(1 - self.moments, self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None

    def frame_config(self) -> "EngramVLAConfig":
        """Return a configuration whose samples are single frames, for `forward_chunk`."""
        return replace(self, memory=replace(self.memory, window=1), moments=1)

    def validate_features(self) -> None:
        """Check what there is to see.

        Raises:
            InvalidValueError: If there is no camera, or no state of the robot.
        """
        seen = list(self.input_features or {})
        if not self.image_features or self.robot_state_feature is None:
            raise InvalidValueError("policy.input_features", seen, f"a camera and {OBS_STATE}")

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW."""
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> Any:
        """Linear rise, then a cosine."""
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
        )
