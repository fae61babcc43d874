"""Maps on every kind of kernel, to be compared with the reference."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engram.kernels import VoxelMap, device, native
from engram.kernels.device import Device, load_device
from engram.kernels.kernel import Kernel
from engram.kernels.native import Native
from engram.kernels.reference import Reference

SOURCE = Path(__file__).resolve().parents[2] / "kernels" / "source"
Make = Callable[..., VoxelMap]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The device's kernels, compiled for this processor: every line but the launch is the same."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("emulated") / "libvoxels.so"
    flags = "-O2 -std=c++17 -ffp-contract=off -fPIC -shared -fvisibility=hidden -pthread".split()
    sources = sorted(map(str, SOURCE.glob("*.cu")))
    subprocess.run([compiler, *flags, "-x", "c++", *sources, "-o", str(library)], check=True)
    return load_device(library)


KINDS = ["native", "emulated", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="session", params=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    """Builds maps whose kernels are to be compared with the reference."""
    if request.param == "cuda":
        if not device.library():
            pytest.skip("no library for CUDA")
        return lambda voxel_size, **given: VoxelMap(voxel_size, device="cuda", **given)
    kernel = kernels(request, request.param)
    return lambda voxel_size, **given: VoxelMap(voxel_size, kernel=kernel(), **given)


@pytest.fixture(scope="session", params=["native", "emulated", "reference"])
def kernel(request: pytest.FixtureRequest) -> Callable[[], Kernel]:
    """Makes kernels of every kind that this machine can run."""
    return kernels(request, request.param)


def kernels(request: pytest.FixtureRequest, kind: str) -> Callable[[], Kernel]:
    if kind == "reference":
        return Reference
    if kind == "emulated":
        library = request.getfixturevalue("emulated")
        return lambda: Device(torch.device("cpu"), library)
    if not native.libraries():
        pytest.skip("no compiled kernels")
    return lambda: Native(2)
