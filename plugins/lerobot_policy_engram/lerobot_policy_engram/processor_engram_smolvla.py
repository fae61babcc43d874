"""The processors of `engram_smolvla`, which are those of `smolvla`."""

from typing import Any

from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors


def make_engram_smolvla_pre_post_processors(
    config: Any, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[Any, Any]:
    """Return what normalises a batch, windows as frames, and what undoes it for actions."""
    return make_smolvla_pre_post_processors(config, dataset_stats=dataset_stats)
