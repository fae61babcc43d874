"""The folder of one run: whose it is, what was measured, and who may write to it."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engram.kernels.errors import DataError
from engram.launch.config import UsageError
from engram.launch.files import read_json, write, write_json

FORMAT = 1
CHECKPOINT = "checkpoint.safetensors"
FREE = {
    "threads",
    "budget",
    "seeds",
    "device",
    "out",
    "resume",
    "workers",
    "memories",
    "tasks",
    "variants",
    "checkpoint_seconds",
    "mirror",
    "policy.vision.path",
    "sweep",
    "ray.address",
    "ray.cpus_per_worker",
    "ray.cpus_per_learner",
    "ray.object_store_memory",
    "ray.timeout",
    "ray.patience",
    "ray.restarts",
    "ray.wheel",
}
"""Keys that may change between a run and its continuation. What is in the folder of a pretrained
model the checkpoint knows."""


@contextmanager
def locked(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Keep every other process from writing to a run's folder.

    Args:
        folder: Made where it does not exist.
        wait: How long another process may take to leave it [s].

    Raises:
        UsageError: If another process writes to it, still.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)  # a folder can be locked like a file
    ends = time.monotonic() + wait
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= ends:
                    raise UsageError(
                        f"out: another process writes to {folder}; allowed: to wait, or another "
                        "folder"
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def check(folder: Path, tree: dict[str, Any], *, resume: bool) -> None:
    """Check that a folder is empty, or holds the run that is to be continued.

    Raises:
        UsageError: If it holds a run and `resume` is false, or another run.
        DataError: If what it holds is damaged.
    """
    path = folder / "config.json"
    if not path.exists():
        if (folder / CHECKPOINT).exists():
            raise DataError(f"{path} is missing beside a checkpoint; allowed: a whole run, or none")
        return
    if not resume:
        raise UsageError(
            f"out: {folder} already holds a run; allowed: resume=true, or another folder"
        )
    theirs, mine = binding(read_config(folder)["tree"]), binding(tree)
    for key in sorted(theirs.keys() | mine.keys()):
        if key not in theirs:
            allowed = "to set what it has, or another folder"
            raise UsageError(f"resume: the run in {folder} has no {key}; allowed: {allowed}")
        if theirs.get(key) != mine.get(key):
            raise UsageError(
                f"resume: {key} is {mine.get(key)!r}; allowed: as the run in {folder} began, "
                f"{theirs.get(key)!r}"
            )


def claim(folder: Path, memory: str, seed: int, tree: dict[str, Any]) -> None:
    """Write what the run in a folder is."""
    facts = {"format": FORMAT, "memory": memory, "seed": seed, "tree": tree}
    write_json(folder / "config.json", facts)


def read_config(folder: Path) -> dict[str, Any]:
    """Read what `claim` wrote.

    Raises:
        DataError: If it is missing, damaged or of another format.
    """
    path = folder / "config.json"
    config = read_json(path)
    kinds = {"format": int, "memory": str, "seed": int, "tree": dict}
    for name, kind in kinds.items():
        value = config.get(name) if isinstance(config, dict) else None
        if not isinstance(value, kind):
            raise DataError(f"{path} is damaged: {name} is {value!r}; allowed: {kind.__name__}")
    if config["format"] != FORMAT:
        raise DataError(f"{path}: format is {config['format']}; allowed: {FORMAT}")
    return config


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read what was measured, one entry per rollout.

    A last line that was being written when the run was killed is left out.

    Raises:
        DataError: If any other line is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    entries = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("steps"), int):
                raise ValueError("steps is missing")
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise DataError(f"{path}, line {number} is damaged: {error}") from None
        entries.append(entry)
    return entries


def forget_after(folder: Path, steps: int) -> None:
    """Drop what a killed run measured after its last checkpoint: it will be measured again."""
    kept = [json.dumps(entry) + "\n" for entry in read_metrics(folder) if entry["steps"] <= steps]
    write(folder / "metrics.jsonl", "".join(kept))


def binding(tree: dict[str, Any]) -> dict[str, Any]:
    """Return, by their dotted keys, the leaves that make a run what it is."""
    leaves = flat(tree).items()
    return {k: v for k, v in leaves if k not in FREE and k.partition(".")[0] not in FREE}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree's leaves by their dotted keys."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            leaves |= flat(value, f"{key}.")
        else:
            leaves[key] = value
    return leaves
