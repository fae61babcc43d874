"""Spatial indexes and the error root: the bottom of the house."""

from engram.kernels.errors import EngramError

__all__ = ["EngramError"]
