"""Compiles the kernels; everything else stands in pyproject.toml.

The libraries know neither Python nor torch, so one wheel per platform serves every version of both.
Without a C++ compiler the package is built without them and runs in torch alone; where there is
nvcc, there is a library for CUDA devices too.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = sorted(map(str, Path("kernels/source").glob("*.cpp")))
CUDA_SOURCES = sorted(map(str, Path("kernels/source").glob("*.cu")))
HEADERS = sorted(map(str, Path("kernels/source").glob("*.h")))
# Contraction to fused operations would give other voxels than elsewhere.
FLAGS = "-std=c++17 -O3 -ffp-contract=off -fPIC -shared -fvisibility=hidden -pthread".split()
# Ampere, Hopper, and what compiles itself on later ones; the runtime is part of the library.
CUDA_FLAGS = [
    *"-std=c++17 -O3 --fmad=false --expt-relaxed-constexpr -shared -cudart static".split(),
    *"-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90".split(),
    *"-gencode arch=compute_90,code=compute_90".split(),
    *"-Xcompiler -fPIC,-fvisibility=hidden --threads 2".split(),
]
X86 = platform.machine().lower() in ("x86_64", "amd64")
LEVELS = {
    "v2": ["-march=x86-64-v2"] if X86 else [],
    **({"v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4"]} if X86 else {}),
}


def nvcc() -> str:
    """Where CUDA's compiler is; empty where there is none."""
    for folder in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if folder and (found := shutil.which("nvcc", path=f"{folder}/bin")):
            return found
    return shutil.which("nvcc") or ""


class BuildLibraries(build_ext):
    """Builds plain shared libraries by the local compiler."""

    def get_ext_filename(self, fullname: str) -> str:
        """Name a library without Python's suffix."""
        return os.path.join(*fullname.split(".")) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Export no initialisation function: these are no modules."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Compile one library, or say why there is none."""
        target = Path(self.get_ext_fullpath(ext.name))
        if target.stem.endswith("cuda"):
            command, without = [nvcc(), *CUDA_FLAGS], "CUDA tensors"
        else:
            compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or ""
            command, without = [*compiler.split(), *FLAGS], "VoxelMap"
        if command[0] in ("", FLAGS[0]):
            self.warn(f"no compiler for {target.name}: {without} will run in torch alone")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")  # a library that is in use stays whole
        command += [*ext.extra_compile_args, *ext.sources, "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            self.warn(f"{target.name} is not built, {without} runs in torch alone:\n{done.stderr}")
            return
        partial.replace(target)

    def get_outputs(self) -> list[str]:
        """List the libraries that were built."""
        return [path for path in super().get_outputs() if Path(path).exists()]


class Wheel(bdist_wheel):
    """A wheel for every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            f"engram.kernels.libvoxels_{level}", SOURCES, depends=HEADERS, extra_compile_args=flags
        )
        for level, flags in LEVELS.items()
    ]
    + [Extension("engram.kernels.libvoxels_cuda", CUDA_SOURCES, depends=HEADERS)],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
)
