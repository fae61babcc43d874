"""The processors of `engram_diffusion`, which are those of `diffusion`."""

from typing import Any

from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors


def make_engram_diffusion_pre_post_processors(
    config: Any, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[Any, Any]:
    """Return what normalises a batch, windows as frames, and what undoes it for actions."""
    return make_diffusion_pre_post_processors(config, dataset_stats=dataset_stats)
