"""Builds the wheel and uses it as a stranger would: another environment, outside the checkout.

An editable install finds whatever lies in the tree; only a wheel shows what was forgotten in the
package list or among the data files.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("agents", "configs", "envs", "kernels", "launch", "memory", "policies")

IMPORT_ALL = """
import importlib, importlib.metadata, pathlib, sys
files = [path for path in importlib.metadata.files("engram") if path.parts[0] == "engram"]
modules = set()
for path in files:
    # What ROS itself runs imports ROS, which pip cannot install.
    if path.suffix != ".py" or path.parts[:3] == ("engram", "launch", "ros"):
        continue
    # These subclass what an extra brings.
    if path.name.partition(".")[0].partition("_")[0] in ("rllib", "sb3"):
        continue
    parts = path.with_suffix("").parts
    modules.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
for name in sorted(modules):
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), module.__file__
print(f"imported {len(modules)} modules of engram {importlib.metadata.version('engram')}")
"""


USE_KERNELS = """
import torch
from engram.kernels import VoxelMap, native
names = [library._name.rpartition("/")[2] for library in native.libraries()]
held = VoxelMap(0.1)
held.insert_points(torch.tensor([[1.0, 2.0, 3.0]]), (0.0, 0.0, 0.0))
assert names and held.occupancy(torch.tensor([[1.0, 2.0, 3.0]])).item() == 1
print("compiled kernels: " + ", ".join(names))
"""


def sources() -> set[str]:
    """Files of the checkout, relative to it: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    names = set(listed.stdout.split("\0")) - {""}
    return {name for name in names if (ROOT / name).is_file()}


def build(into: Path) -> Path:
    """Build the wheel from a copy, for a `build/` left in the checkout would leak old files."""
    copy = into / "source"
    for name in sources():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    # Without isolation the pinned setuptools of this environment builds it.
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", into, copy)
    (wheel,) = into.glob("*.whl")
    return wheel


def missing(wheel: Path) -> list[str]:
    """Files that belong in the wheel and are not there."""
    packed = set(zipfile.ZipFile(wheel).namelist())
    suffixes = (".py", ".yaml", "py.typed")
    wanted = {
        f"engram/{name}"
        for name in sources()
        if name.startswith(tuple(f"{folder}/" for folder in FOLDERS)) and name.endswith(suffixes)
    }
    wanted |= {f"engram/{folder}/py.typed" for folder in FOLDERS}
    return sorted(wanted - packed)


def run(*command: object, cwd: Path | None = None) -> None:
    """Run a command in an environment without Python's own variables; show output on failure."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed: {' '.join(map(str, command[:6]))}")
    if cwd:
        print(done.stdout.strip().splitlines()[0])


def main() -> None:
    """Build, install, import; exit non-zero at the first thing that is wrong."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="engram-wheel-") as name:
        folder = Path(name)
        wheel = build(folder)
        print(f"built {wheel.name} in {time.monotonic() - began:.0f} s")
        if absent := missing(wheel):
            sys.exit(f"{wheel.name} lacks {', '.join(absent)}")

        began = time.monotonic()
        venv.create(folder / "venv", with_pip=True)
        bin = folder / "venv" / "bin"
        constraints = ROOT / "constraints.txt"
        pip = bin / "python", "-m", "pip"
        run(*pip, "install", "--quiet", "--no-compile", "-c", constraints, wheel)
        run(*pip, "check")
        print(f"installed it in a clean environment in {time.monotonic() - began:.0f} s")

        run(bin / "python", "-c", IMPORT_ALL, cwd=folder)
        run(bin / "engram", "--help", cwd=folder)
        if shutil.which("c++") or shutil.which("g++"):
            run(bin / "python", "-c", USE_KERNELS, cwd=folder)


if __name__ == "__main__":
    main()
