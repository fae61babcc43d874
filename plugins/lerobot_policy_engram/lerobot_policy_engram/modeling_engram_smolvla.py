"""SmolVLA (Shukor et al. 2025, arXiv 2506.01844) with a memory."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from lerobot_policy_engram.configuration_engram_smolvla import EngramSmolVLAConfig
from lerobot_policy_engram.remembering import RememberingPolicy


class EngramSmolVLAPolicy(RememberingPolicy, SmolVLAPolicy):
    """SmolVLA that listens to a memory through the token of the robot's state.

    The action expert attends to that token, and so does every token of the actions. The memory is
    told the image tokens, averaged over a grid, and the state. The vision encoder runs at every
    step of the environment, where without memory it runs once per chunk.
    """

    config_class = EngramSmolVLAConfig
    name = "engram_smolvla"

    def feature_width(self) -> int:
        """Width of the grids and of the padded state."""
        cells = len(self._observed()[1:]) * self.config.memory.grid**2
        return cells * self.read_width() + self.config.max_state_dim

    def read_width(self) -> int:
        """Width of a token."""
        return self.model.state_proj.out_features

    def frame_features(self, frames: dict[str, Tensor]) -> Tensor:
        """Run SmolVLA's own vision encoder."""
        images, _ = self.prepare_images(frames)
        parts = [self.prepare_state(frames)]
        for image in images[: len(self._observed()) - 1]:
            tokens = self.model.vlm_with_expert.embed_image(image)
            side = round(tokens.shape[1] ** 0.5)
            assert side * side == tokens.shape[1], tokens.shape
            maps = rearrange(tokens, "n (h w) d -> n d h w", h=side)
            cells = adaptive_avg_pool2d(maps, self.config.memory.grid)
            parts.append(rearrange(cells, "n d h w -> n (d h w)"))
        return torch.cat(parts, dim=-1)

    @contextmanager
    def hearing(self, read: Tensor) -> Iterator[None]:
        """Add the reading to the state's token."""
        layer = self.model.state_proj
        hook = layer.register_forward_hook(lambda _m, _x, token: token + read.to(token.dtype))
        try:
            yield
        finally:
            hook.remove()

    def present(self, window: Tensor) -> Tensor:
        """Cut the last frame: SmolVLA looks at one."""
        return window[:, -1]

    def newest(self, frames: Tensor) -> Tensor:
        """Cut the one frame of SmolVLA's own samples."""
        return frames[:, -1]

    def action_queue(self) -> deque[Tensor] | None:
        """Return the queue of actions."""
        return self._queues[ACTION]

    def _observed(self) -> list[str]:
        """The state and the cameras that exist; empty ones stand for those of other robots."""
        cameras = [key for key in self.config.image_features if ".empty_camera_" not in key]
        return [OBS_STATE, *cameras]
