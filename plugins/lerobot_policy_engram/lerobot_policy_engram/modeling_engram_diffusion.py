"""Diffusion policy (Chi et al. 2023, arXiv 2303.04137) with a memory."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_IMAGES, OBS_STATE
from torch import Tensor, nn

from lerobot_policy_engram.configuration_engram_diffusion import EngramDiffusionConfig
from lerobot_policy_engram.remembering import RememberingPolicy


class EngramDiffusionPolicy(RememberingPolicy, DiffusionPolicy):
    """Diffusion policy that listens to a memory through the U-Net's conditioning.

    The memory is told the keypoint features of every camera and the robot's and the environment's
    states, all of one frame; the policy itself goes on looking at its last `n_obs_steps` frames.
    """

    config_class = EngramDiffusionConfig
    name = "engram_diffusion"

    def feature_width(self) -> int:
        """Width of the conditioning by one frame."""
        config = self.config
        states = (config.robot_state_feature, config.env_state_feature)
        keypoints = sum(encoder.feature_dim for _, encoder in self._cameras())
        return keypoints + sum(state.shape[0] for state in states if state)

    def read_width(self) -> int:
        """Width of the conditioning."""
        return self.feature_width() * self.config.n_obs_steps

    def frame_features(self, frames: dict[str, Tensor]) -> Tensor:
        """Run the policy's own image encoders."""
        states = (OBS_STATE, OBS_ENV_STATE)
        parts = [frames[key] for key in states if key in frames]
        parts += [encoder(frames[key]) for key, encoder in self._cameras()]
        return torch.cat(parts, dim=-1)

    @contextmanager
    def hearing(self, read: Tensor) -> Iterator[None]:
        """Add the reading to the conditioning of every denoising step."""
        model = self.diffusion
        plain = model._prepare_global_conditioning

        def conditioning(batch: dict[str, Tensor]) -> Tensor:
            condition = plain(batch)
            return condition + read.to(condition.dtype)

        # Not a hook on the U-Net: where that is compiled, hooks would compile it again.
        model._prepare_global_conditioning = conditioning
        try:
            yield
        finally:
            del model._prepare_global_conditioning

    def present(self, window: Tensor) -> Tensor:
        """Cut the last `n_obs_steps` frames."""
        return window[:, -self.config.n_obs_steps :]

    def newest(self, frames: Tensor) -> Tensor:
        """Cut the last of the `n_obs_steps` frames."""
        return frames[:, -1]

    def action_queue(self) -> deque[Tensor] | None:
        """Return the queue of actions."""
        return self._queues[ACTION]

    def plan(self, batch: dict[str, Any]) -> Tensor:
        """Denoise, given the frames in the queues."""
        # Of the batch, only the names count: they say which queues are used.
        return super().plan(dict.fromkeys(key for key in self._queues if key != ACTION))

    def begin_rows(self, rows: Bool[Tensor, " B"], batch: dict[str, Any]) -> None:
        """Fill the frames before the first with it, as at the beginning of an episode."""
        present = dict(batch)
        if self.config.image_features:
            images = [batch[key] for key in self.config.image_features]
            present[OBS_IMAGES] = torch.stack(images, dim=-4)
        for key, queue in self._queues.items():
            if key == ACTION:
                continue
            for place, old in enumerate(list(queue)):
                mask = rows.view(-1, *[1] * (old.ndim - 1))
                queue[place] = torch.where(mask, present[key], old)

    def _cameras(self) -> list[tuple[str, nn.Module]]:
        keys = list(self.config.image_features)
        if not keys:
            return []
        encoder = self.diffusion.rgb_encoder
        encoders = list(encoder) if isinstance(encoder, nn.ModuleList) else [encoder] * len(keys)
        return list(zip(keys, encoders, strict=True))
