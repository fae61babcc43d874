"""Who may import whom: the dependency table of the house, enforced on every source file."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("agents", "configs", "envs", "kernels", "launch", "memory", "policies")

MAY_IMPORT = {
    "kernels": ("engram.kernels",),
    "memory": ("engram.memory", "engram.kernels"),
    "envs": ("engram.envs", "engram.memory.stores"),
    "policies": ("engram.policies", "engram.memory"),
    "agents": ("engram.agents", "engram.policies", "engram.envs", "engram.memory"),
    "configs": (),
    "launch": ("engram",),
}
# The root of every error: whoever raises one needs it, and it imports nothing.
ANYONE_MAY_IMPORT = "engram.kernels.errors"
KERNELS_MAY_IMPORT = {"engram", "jaxtyping", "numpy", "torch", *sys.stdlib_module_names}

ROS = {
    "ament_index_python",
    "builtin_interfaces",
    "cv_bridge",
    "cyclonedds",
    "geometry_msgs",
    "launch",
    "launch_ros",
    "message_filters",
    "nav_msgs",
    "octomap_msgs",
    "rclpy",
    "rosbags",
    "rosidl_runtime_py",
    "rospy",
    "sensor_msgs",
    "std_msgs",
    "tf2_py",
    "tf2_ros",
    "visualization_msgs",
    "zenoh",
}
# Slow to import or not installed: only a function that needs one may import it.
HEAVY = {
    "habitat",
    "habitat_sim",
    "lerobot",
    "mani_skill",
    "mink",
    "mujoco",
    "mujoco_warp",
    "open3d",
    "openai",
    "popgym",
    "ray",
    "rerun",
    "sb3_contrib",
    "stable_baselines3",
    "tensorboard",
    "timm",
    "torch.utils.tensorboard",
    "transformers",
    "unified_planning",
    "warp",
}


# Files that subclass what a framework brings, by the first word of their name: these alone import
# it at their head, and nobody imports them but whoever asked for them.
FRAMEWORKS = {"rllib": "ray", "sb3": "stable_baselines3"}


class Import(NamedTuple):
    """One imported name."""

    line: int
    target: str
    """Dotted path of what is imported: `a.b` for both `import a.b` and `from a import b`."""
    relative: bool
    at_import: bool
    """Whether it runs when the file is imported, neither in a function nor for types alone."""


def imports(tree: ast.AST, at_import: bool = True) -> Iterator[Import]:
    """Every import below a node, those written as calls with a constant name included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(node.lineno, name.name, False, at_import)
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                target = ".".join(part for part in (node.module, name.name) if part)
                yield Import(node.lineno, target, node.level > 0, at_import)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            if node.args and isinstance(name := node.args[0], ast.Constant):
                yield Import(node.lineno, str(name.value), str(name.value)[:1] == ".", at_import)
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            deferred = True
        yield from imports(node, at_import and not deferred)


def called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def within(target: str, *prefixes: str) -> bool:
    return any(f"{target}.".startswith(f"{prefix}.") for prefix in prefixes)


def framework(path: str) -> str | None:
    """The framework that a module is built on, given its path or dotted name."""
    words = re.findall(r"(?:^|[/.])(rllib|sb3)(?=_|\.|$)", path)
    return FRAMEWORKS[words[-1]] if words else None


def violations(source: str, path: str) -> list[str]:
    """What a file imports and must not, as `path:line: reason`; path is relative to the root."""
    parts = Path(path).parts
    folder = parts[0]
    found = []
    for line, target, relative, at_import in imports(ast.parse(source)):
        package = target.partition(".")[0]

        def refuse(reason: str, line: int = line) -> None:
            found.append(f"{path}:{line}: {reason}")

        if relative:
            refuse("relative import; write it from engram")
        elif package in FOLDERS and not (package == "launch" and folder == "launch"):
            refuse(f"import engram.{package}, not {package}")
        elif folder == "tests":
            continue
        elif package == "engram":
            theirs = framework(target)
            if at_import and theirs and theirs != framework(path):
                refuse(f"import {target} in the function that needs it")
            if not within(target, *MAY_IMPORT[folder], ANYONE_MAY_IMPORT):
                refuse(f"{folder} must not import {target}")
        elif package in ROS:
            if folder != "launch":
                refuse(f"only launch imports ROS, not {target}")
            elif at_import and parts[:2] != ("launch", "ros"):
                refuse(f"import {target} in the function that needs it")
        elif at_import and within(target, *HEAVY) and package != framework(path):
            refuse(f"import {target} in the function that needs it")
        elif folder == "kernels" and package not in KERNELS_MAY_IMPORT:
            refuse(f"kernels import torch and numpy alone, not {target}")
        elif folder == "configs":
            refuse("configs hold no code")
    return found


def sources(*folders: str) -> list[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in paths)


@pytest.mark.parametrize("folder", [*FOLDERS, "tests"])
def test_folder_imports_only_what_it_may(folder: str):
    found = [v for path in sources(folder) for v in violations((ROOT / path).read_text(), path)]
    assert found == []


@pytest.mark.parametrize(
    "path, source",
    [
        ("kernels/morton.py", "from engram.memory import Recall"),
        ("kernels/morton.py", "import einops"),
        ("memory/state.py", "import engram.agents.ppo"),
        ("memory/state.py", "def f():\n    from engram.envs import vector"),
        ("memory/state.py", "from engram import policies"),
        ("memory/state.py", "import importlib\nimportlib.import_module('engram.agents')"),
        ("envs/tmaze.py", "from engram.memory.sequence import GRU"),
        ("envs/tmaze.py", "from engram.memory.stores_extra import x"),
        ("envs/tmaze.py", "import engram.kernels"),
        ("envs/reacher.py", "import mujoco"),
        ("envs/reacher.py", "class A:\n    import mujoco.viewer"),
        ("envs/reacher.py", "try:\n    import mujoco\nexcept ImportError:\n    pass"),
        ("policies/heads.py", "from engram.agents import rollout"),
        ("policies/heads.py", "from stable_baselines3 import PPO"),
        ("policies/rllib.py", "from stable_baselines3 import PPO"),
        ("agents/ppo.py", "from engram.policies.rllib import MemoryModule"),
        ("agents/sb3.py", "from engram.policies import rllib"),
        ("agents/ppo.py", "from engram.launch.main import main"),
        ("agents/ppo.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("agents/ppo.py", "import engram.configs"),
        ("agents/ppo.py", "from .rollout import Rollout"),
        ("agents/ppo.py", "from memory import state"),
        ("agents/ppo.py", "def f():\n    import rclpy"),
        ("agents/ppo.py", "from launch import LaunchDescription"),
        ("launch/main.py", "import rclpy"),
        ("launch/main.py", "import agents"),
        ("configs/__init__.py", "import os"),
        ("configs/__init__.py", "import engram.memory"),
        ("tests/memory/test_state.py", "import memory.state"),
        ("tests/memory/test_state.py", "from . import conftest"),
    ],
)
def test_a_violation_is_caught(path: str, source: str):
    assert violations(source, path)


@pytest.mark.parametrize(
    "path, source",
    [
        ("kernels/morton.py", "import ctypes, torch, numpy as np\nfrom jaxtyping import Int"),
        ("memory/sequence/hcam.py", "from engram.memory import state\nimport einops"),
        ("memory/stores/octree.py", "from engram.kernels import morton"),
        ("envs/tmaze.py", "from engram.kernels.errors import EngramError"),
        ("envs/recall.py", "from engram.memory import stores"),
        ("envs/reacher.py", "def load():\n    import mujoco"),
        (
            "envs/reacher.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mujoco",
        ),
        ("agents/ppo.py", "def log():\n    from torch.utils.tensorboard import SummaryWriter"),
        ("launch/main.py", "from engram.agents import ppo\nimport hydra"),
        ("launch/ros/bridge.py", "import rclpy"),
        ("policies/rllib.py", "from ray.rllib.core import Columns"),
        ("policies/rllib_states.py", "from engram.policies import rllib"),
        ("agents/sb3.py", "import stable_baselines3.common.base_class"),
        ("agents/ppo.py", "def f():\n    from engram.policies.rllib import MemoryModule"),
        ("launch/ros/memory.launch.py", "from launch import LaunchDescription"),
        ("tests/envs/test_reacher.py", "import mujoco, engram.agents"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str):
    assert violations(source, path) == []
