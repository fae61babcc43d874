"""A file of `configs/streams` builds what its name, and the report that shows it, say."""

import math
from typing import Any

import pytest

from engram.launch.build import instantiate_plainly
from engram.launch.clone_config import compose_clone
from engram.launch.config import choices
from engram.memory.sequence import GRU, HCAM, Bank, Memo, MemoryTokens, OverStreams, Window
from engram.memory.sequence.over_streams import PresentOnly

BANK = {
    "kind": Bank,
    "capacity": 16,
    "gradient_writes": None,
    "write_fused": False,
    "together": False,
    "consolidation": "AdjacentMerge",
    "time": "LogarithmicTime",
    "fusion": "GateFusion",
    "keep": 0.9,
    "heads": 4,
    "layers": 2,
    "dropout": 0.0,
    "read_self": False,
}
PUBLISHED = {**BANK, "gradient_writes": 0, "time": "AbsoluteTime", "keep": 0.5}

WANTED: dict[str, dict[str, Any]] = {
    "bank": BANK,
    "bank_4": {**BANK, "capacity": 4},
    "bank_64": {**BANK, "capacity": 64},
    "bank_absolute": {**BANK, "time": "AbsoluteTime"},
    "bank_add": {**BANK, "fusion": "AddFusion", "keep": 0.5},
    "bank_detached": {**BANK, "gradient_writes": 0},
    "bank_fifo": {**BANK, "consolidation": "Oldest"},
    "bank_half": {**BANK, "keep": 0.5},
    "bank_usage": {**BANK, "consolidation": "LeastUsed"},
    "memoryvla": {**PUBLISHED, "heads": 1},
    "memoryvla_plus": {**PUBLISHED, "write_fused": True, "dropout": 0.1, "read_self": True},
    "none": {"kind": PresentOnly},
    "gru": {"kind": GRU, "width": 208},
    "hcam": {"kind": HCAM, "width": 176, "chunk": 4, "capacity": 64, "top_k": 4},
    "history": {"kind": Window, "width": 224, "window": 256, "heads": 4},
    "window": {"kind": Window, "width": 224, "window": 8, "heads": 4},
    "memo": {"kind": Memo, "width": 192, "segment": 8, "summary": 2, "capacity": 32},
    "tokens_1": {"kind": MemoryTokens, "width": 192, "gradient_steps": 1},
    "tokens_2": {"kind": MemoryTokens, "width": 192, "gradient_steps": 2},
    "tokens_8": {"kind": MemoryTokens, "width": 192, "gradient_steps": 8},
}
"""What sets each apart from the others."""


def built(name: str) -> dict[str, Any]:
    """What a memory was built with, read from what it is made of."""
    (tree,) = compose_clone([f"memory={name}"]).trees.values()
    memory = instantiate_plainly(tree["streams"])(perceptual=(4, 32), cognitive=(1, 512))
    if isinstance(memory, Bank):
        return {"kind": Bank, **of_bank(memory)}
    if not isinstance(memory, OverStreams):
        return {"kind": type(memory)}
    inside: Any = next(part for part in memory.modules() if type(part) in KINDS)
    found = {"kind": type(inside), "width": inside.d_in}
    if isinstance(inside, HCAM):
        found |= {"chunk": inside.chunk, "capacity": inside.capacity}
        found["top_k"] = inside.attention.top_k
    elif isinstance(inside, Window):
        found |= {"window": inside.window, "heads": inside.heads}
    elif isinstance(inside, Memo):
        found |= {"segment": inside.lengths.segment, "summary": inside.summary}
        found["capacity"] = inside.capacity
    elif isinstance(inside, MemoryTokens):
        found["gradient_steps"] = inside.gradient_steps
    return found


KINDS = (GRU, HCAM, Window, Memo, MemoryTokens)


def of_bank(bank: Bank) -> dict[str, Any]:
    retrieval: Any = bank.retrieval["cognitive"]
    fusion = retrieval.fusion
    gate = getattr(fusion, "gate", None)
    keep = fusion.keep if gate is None else 1 / (1 + math.exp(-gate.bias.mean().item()))
    return {
        "capacity": bank.capacity,
        "gradient_writes": bank.gradient_writes,
        "write_fused": bank.write_fused,
        "together": bank.together,
        "consolidation": type(bank.consolidation).__name__,
        "time": type(retrieval.time_code).__name__,
        "fusion": type(fusion).__name__,
        "keep": pytest.approx(keep, abs=1e-3),
        "heads": retrieval.blocks[0].heads,
        "layers": len(retrieval.blocks),
        "dropout": retrieval.blocks[0].dropout,
        "read_self": retrieval.read_self,
    }


def test_every_memory_is_listed_here() -> None:
    assert sorted(choices("streams")) == sorted(WANTED)


@pytest.mark.parametrize("name", WANTED)
def test_a_memory_is_what_its_name_says(name: str) -> None:
    assert built(name) == WANTED[name]
