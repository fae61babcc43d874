"""Neural memories: causal maps that carry their state in and out."""

from engram.memory.sequence.bank import Bank
from engram.memory.sequence.bank_consolidation import AdjacentMerge, LeastUsed, Oldest
from engram.memory.sequence.bank_presets import memoryvla, memoryvla_plus
from engram.memory.sequence.bank_retrieval import (
    AbsoluteTime,
    AddFusion,
    GateFusion,
    LogarithmicTime,
    RelativeTime,
)
from engram.memory.sequence.base import SequenceMemory
from engram.memory.sequence.chain import Block, Chain, stack
from engram.memory.sequence.gtrxl import GTrXL, GTrXLLayer
from engram.memory.sequence.hcam import HCAM
from engram.memory.sequence.memo import Memo
from engram.memory.sequence.memory_tokens import MemoryTokens
from engram.memory.sequence.none import NoMemory
from engram.memory.sequence.over_streams import OverStreams, PresentOnly
from engram.memory.sequence.over_vectors import OverVectors
from engram.memory.sequence.recurrent import GRU, LSTM
from engram.memory.sequence.streams import Streams
from engram.memory.sequence.window import Window

__all__ = [
    "GRU",
    "HCAM",
    "LSTM",
    "AbsoluteTime",
    "AddFusion",
    "AdjacentMerge",
    "Bank",
    "Block",
    "Chain",
    "GTrXL",
    "GTrXLLayer",
    "GateFusion",
    "LeastUsed",
    "LogarithmicTime",
    "Memo",
    "MemoryTokens",
    "NoMemory",
    "Oldest",
    "OverStreams",
    "OverVectors",
    "PresentOnly",
    "RelativeTime",
    "SequenceMemory",
    "Streams",
    "Window",
    "memoryvla",
    "memoryvla_plus",
    "stack",
]
