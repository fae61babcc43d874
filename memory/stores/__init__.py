"""External stores: mutable memories that outlive episodes and see no gradient."""

from engram.memory.stores.base import Recall, Store

__all__ = ["Recall", "Store"]
