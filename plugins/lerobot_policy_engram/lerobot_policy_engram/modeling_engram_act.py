"""ACT (Zhao et al. 2023, arXiv 2304.13705) with a memory."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.utils.constants import OBS_ENV_STATE, OBS_STATE
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from lerobot_policy_engram.configuration_engram_act import EngramACTConfig
from lerobot_policy_engram.remembering import RememberingPolicy


class EngramACTPolicy(RememberingPolicy, ACTPolicy):
    """ACT that listens to a memory through the token of its latent.

    Acting, that token carries nothing else: the latent is zero. The memory is told the cameras'
    feature maps, averaged over a grid, and the robot's and the environment's states.
    """

    config_class = EngramACTConfig
    name = "engram_act"

    def feature_width(self) -> int:
        """Width of the grids and the states."""
        config = self.config
        cells = len(config.image_features) * config.memory.grid**2
        states = (config.robot_state_feature, config.env_state_feature)
        return cells * config.dim_model + sum(state.shape[0] for state in states if state)

    def read_width(self) -> int:
        """Width of a token."""
        return self.config.dim_model

    def frame_features(self, frames: dict[str, Tensor]) -> Tensor:
        """Run ACT's own image encoder."""
        states = (OBS_STATE, OBS_ENV_STATE)
        parts = [frames[key] for key in states if key in frames]
        for key in self.config.image_features:
            maps = self.model.encoder_img_feat_input_proj(
                self.model.backbone(frames[key])["feature_map"]
            )
            cells = adaptive_avg_pool2d(maps, self.config.memory.grid)
            parts.append(rearrange(cells, "n d h w -> n (d h w)"))
        return torch.cat(parts, dim=-1)

    @contextmanager
    def hearing(self, read: Tensor) -> Iterator[None]:
        """Add the reading to the latent's token."""
        layer = self.model.encoder_latent_input_proj
        hook = layer.register_forward_hook(lambda _m, _x, token: token + read.to(token.dtype))
        try:
            yield
        finally:
            hook.remove()

    def present(self, window: Tensor) -> Tensor:
        """Cut the last frame: ACT looks at one."""
        return window[:, -1]

    def action_queue(self) -> deque[Tensor] | None:
        """Return ACT's queue, which a temporal ensemble does without."""
        return None if self.config.temporal_ensemble_coeff is not None else self._action_queue
