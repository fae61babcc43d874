"""Which kernels compute, where the user does not say."""

import functools
import warnings

import torch

from engram.kernels import device as cuda
from engram.kernels import native
from engram.kernels.device import Device
from engram.kernels.kernel import Kernel
from engram.kernels.native import Native
from engram.kernels.reference import Reference

OLDEST = (8, 0)
"""Compute capability that the library is compiled for, and all above."""


def choose_kernel(device: torch.device) -> Kernel:
    """Return the compiled kernels where there are any for the device, else those in torch."""
    if device.type == "cpu" and native.libraries():
        return Native()
    if device.type == "cuda" and (library := cuda.library()):
        if torch.cuda.get_device_capability(device) >= OLDEST:
            return Device(device, library)
    _say_once(str(device))
    return Reference()


@functools.cache
def _say_once(device: str) -> None:
    warnings.warn(
        f"no compiled kernels for {device}: VoxelMap runs in torch alone, correct but slower",
        stacklevel=4,
    )
