"""`engram info`: what there is to choose from, and where it would run."""

import importlib.metadata
import inspect
import platform

import torch
from hydra.utils import get_object, instantiate
from rich.console import Console
from rich.table import Table

from engram.launch.clone_config import GROUPS as CLONE_GROUPS
from engram.launch.config import GROUPS, choices, compose_tree
from engram.memory import state as states


def info(console: Console) -> int:
    """Print modules, environments, presets and devices."""
    version = importlib.metadata.version("engram")
    console.print(
        f"engram {version}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    memories = Table(title="memory=")
    for name in ("name", "what it is", "parameters at width 64", "state bytes per environment"):
        memories.add_column(name)
    for name in choices("memory"):
        tree = compose_tree([f"memory={name}"])["memory"]
        memory = instantiate(tree)(64)
        target = tree.get("layer", tree)["_target_"]
        memories.add_row(
            name,
            _first_line(target),
            f"{sum(p.numel() for p in memory.parameters()):,}",
            f"{states.nbytes(memory.initial_state(1)):,}",
        )
    console.print(memories)
    envs = Table(title="env=")
    envs.add_column("name")
    envs.add_column("what it is")
    envs.add_column("settings")
    for name in choices("env"):
        tree = compose_tree([f"env={name}"])["env"]
        settings = ", ".join(f"{k}={v}" for k, v in tree.items() if not k.startswith("_"))
        envs.add_row(name, _first_line(tree["_target_"]), settings)
    console.print(envs)
    for group in GROUPS[2:]:
        console.print(f"{group}=  {', '.join(choices(group))}")
    console.print("engram clone (task= of demos and film, too):")
    for group in CLONE_GROUPS:
        names = ", ".join(choices(group))
        console.print(f"  {'memory' if group == 'streams' else group}=  {names}", soft_wrap=True)
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        devices.append(f"cuda:{index} ({torch.cuda.get_device_name(index)})")
    console.print(f"device=  {', '.join(devices)}")
    return 0


def _first_line(target: str) -> str:
    return (inspect.getdoc(get_object(target)) or "").splitlines()[0]
