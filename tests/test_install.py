"""What an import costs and where it leads, seen by an interpreter that knows nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"agents", "configs", "envs", "kernels", "launch", "memory", "policies"}

EXTRAS = {
    "av",
    "cyclonedds",
    "lerobot",
    "mani_skill",
    "mink",
    "mujoco",
    "mujoco_warp",
    "open3d",
    "openai",
    "popgym",
    "pyarrow",
    "ray",
    "rclpy",
    "rerun",
    "rosbags",
    "sb3_contrib",
    "stable_baselines3",
    "tensorboard",
    "transformers",
    "unified_planning",
    "warp",
    "zenoh",
}
# A memory in somebody's own loop needs none of these, though the core depends on them.
BEYOND_MEMORY = {"gymnasium", "hydra", "matplotlib", "omegaconf", "rich"}


def loaded_by(modules: list[str], folder: Path) -> set[str]:
    """Root packages that a fresh interpreter has loaded after importing `modules`."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def modules_in(*folders: str) -> list[str]:
    """Every importable module of the folders; what ROS or a framework builds on is left out."""
    names = []
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        parts = ("engram", *path.relative_to(ROOT).with_suffix("").parts)
        built_on = path.stem.partition("_")[0] in ("rllib", "sb3")
        if parts[:3] != ("engram", "launch", "ros") and not built_on:
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


@pytest.mark.parametrize("folder", ["memory", "kernels"])
def test_memory_loads_torch_and_little_else(folder: str, tmp_path: Path):
    loaded = loaded_by(modules_in(folder), tmp_path)
    assert "torch" in loaded or folder == "kernels"
    assert loaded & (EXTRAS | BEYOND_MEMORY) == set()


@pytest.fixture(scope="module")
def loaded_by_everything(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return loaded_by(modules_in(*FOLDERS), tmp_path_factory.mktemp("elsewhere"))


def test_importing_everything_loads_no_extra(loaded_by_everything: set[str]):
    assert loaded_by_everything & EXTRAS == set()


def test_no_folder_is_imported_under_its_bare_name(loaded_by_everything: set[str]):
    assert loaded_by_everything & FOLDERS == set()
    assert set(sys.modules) & FOLDERS == set()


def test_shapes_are_checked_while_testing():
    from engram.memory import state

    floats = torch.zeros(3)
    with pytest.raises(Exception, match="take"):
        state.take(floats, floats)  # type: ignore


def test_uninitialised_memory_is_poisoned():
    if torch.cuda.is_available():
        pytest.skip("a GPU lacks deterministic versions of some operations")
    assert torch.empty(8).isnan().all()
