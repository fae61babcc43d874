"""The two published memory banks, which disagree in much."""

from functools import partial
from typing import Any

from engram.memory.sequence.bank import Bank
from engram.memory.sequence.bank_consolidation import AdjacentMerge, earlier_time, mean_time
from engram.memory.sequence.bank_retrieval import AbsoluteTime


def _quarter_wide(features: int) -> AbsoluteTime:
    return AbsoluteTime(features, width=max(2, features // 8 * 2))


def memoryvla(perceptual: tuple[int, int], cognitive: tuple[int, int], **settings: Any) -> Bank:
    """Build the bank of MemoryVLA's code on OpenVLA (arXiv 2508.19236).

    One head, no dropout, raw tokens are written, a merged entry takes the earlier time, an empty
    bank is skipped, the sinusoid of time is a quarter of the stream's width.

    Args:
        perceptual: Tokens and features of the perceptual stream; the paper's are 256 and 256.
        cognitive: Tokens and features of the cognitive stream; the paper's are 1 and 4096.
        settings: Further settings of `Bank`, or others than these.
    """
    published: dict[str, Any] = {
        "heads": 1,
        "consolidation": AdjacentMerge(time=earlier_time),
        "time_code": _quarter_wide,
    }
    return Bank(perceptual, cognitive, **published | settings)


def memoryvla_plus(
    perceptual: tuple[int, int], cognitive: tuple[int, int], **settings: Any
) -> Bank:
    """Build the bank of MemoryVLA+, the same authors' code on Dexbotic.

    Four heads, fused tokens are written, a merged entry takes the mean time, the first input of a
    scope reads itself, the sinusoid of time is 256 wide.

    Deviation: dropout of 0.1 applies to training alone; the original's attention drops in
    evaluation too.

    Args:
        perceptual: Tokens and features of the perceptual stream; the paper's are 256 and 256.
        cognitive: Tokens and features of the cognitive stream; the paper's are 1 and 4096.
        settings: Further settings of `Bank`, or others than these.
    """
    published: dict[str, Any] = {
        "heads": 4,
        "dropout": 0.1,
        "write_fused": True,
        "consolidation": AdjacentMerge(time=mean_time),
        "time_code": partial(AbsoluteTime, width=256),
        "read_self": True,
    }
    return Bank(perceptual, cognitive, **published | settings)
