"""ACT's processors, under the name by which LeRobot looks for those of `engram_act`."""

from typing import Any

from lerobot.policies.act.processor_act import make_act_pre_post_processors


def make_engram_act_pre_post_processors(
    config: Any, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[Any, Any]:
    """Return what normalises a batch and what undoes it for an action; windows pass as frames do."""
    return make_act_pre_post_processors(config, dataset_stats=dataset_stats)
