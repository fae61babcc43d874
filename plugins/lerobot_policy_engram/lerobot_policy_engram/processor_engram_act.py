"""The processors of `engram_act`, which are those of `act`."""

from typing import Any

from lerobot.policies.act.processor_act import make_act_pre_post_processors


def make_engram_act_pre_post_processors(
    config: Any, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[Any, Any]:
    """Return what normalises a batch, windows as frames, and what undoes it for actions."""
    return make_act_pre_post_processors(config, dataset_stats=dataset_stats)
