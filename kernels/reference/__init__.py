"""The voxel map in torch alone: the oracle of the compiled kernels, and what runs without them."""

from engram.kernels.reference.operations import Reference

__all__ = ["Reference"]
