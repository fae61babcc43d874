"""The configuration of `engram clone`: tasks, memories and everything they share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engram.kernels.errors import InvalidValueError
from engram.launch.config import (
    UsageError,
    check_keys,
    choices,
    compose_tree,
    parse_bfloat16,
    parse_device,
    parse_seeds,
    parse_workers,
    unknown,
)
from engram.launch.values import conform

RUN = "clone"
GROUPS = ("task", "streams", "vision", "denoising", "batches", "size", "study")
LISTS = {"task": "tasks", "memory": "memories"}
"""Keys that may name several, and where a study lists them."""
VARIANTS = "variants"
"""Where a study says what it runs beside memories: names of lists of arguments."""
RECORDED = ("demonstrations.", "task.", "+task.")
"""What keys begin with that change demonstrations."""
ONCE = (*LISTS, *LISTS.values(), VARIANTS, "study", "seeds", "device", "out", "resume", "workers")
"""Keys of all runs together, which no variant sets."""


@dataclass(frozen=True)
class CloneSettings:
    """What `engram clone` was asked for, checked."""

    trees: dict[tuple[str, str], dict[str, Any]]
    """The resolved configuration of every task and memory, or variant."""
    recordings: dict[tuple[str, str], str]
    """Name of the demonstrations of each: those of its task, but where a variant changes these."""
    tasks: list[str]
    memories: list[str]
    seeds: list[int]
    device: torch.device
    out: Path
    resume: bool
    workers: int


def compose_clone(arguments: list[str]) -> CloneSettings:
    """Compose `key=value` arguments; `task` and `memory` may each name several.

    Among memories a study may name its variants: arguments of their own, which count more than
    those that all runs share.

    Raises:
        EngramError: On the first thing that is wrong, in one line.
    """
    named: dict[str, list[str]] = {}
    rest: list[str] = []
    lists: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise UsageError(f"argument {argument!r} is not of the form key=value")
        if key in LISTS:
            named[key] = [name.strip() for name in value.strip("[]").split(",") if name.strip()]
        elif key in GROUPS and value not in choices(key):
            raise unknown(key, value, choices(key))
        elif key.lstrip("+").partition(".")[0] == VARIANTS:
            lists.append(argument)
        else:
            rest.append(argument)
    lists += [a for a in rest if a.partition("=")[0] in (*GROUPS, *LISTS.values())]
    common = compose_tree(lists, run=RUN)
    tasks = _names("task", named.get("task", common["tasks"]), choices("task"))
    variants = _variants(common[VARIANTS])
    allowed = choices("streams") + list(variants)
    memories = _names("memory", named.get("memory", common["memories"]), allowed)
    trees, recordings = {}, {}
    for name in memories:
        own = variants.get(name, [f"streams={name}"])
        keys = {a.partition("=")[0] for a in own}
        shared = [a for a in rest if a.partition("=")[0] not in keys]
        if name in variants or name == memories[0]:
            check_keys([*shared, *own], [f"task={tasks[0]}"], run=RUN, groups=GROUPS)
        for task in tasks:
            chosen = [*shared, f"task={task}", *own]
            groups = [a for a in chosen if a.partition("=")[0] in GROUPS]
            defaults = compose_tree(groups, run=RUN)
            tree = defaults if chosen == groups else compose_tree(chosen, run=RUN)
            trees[task, name] = conform(tree, defaults, least=LEAST)
            apart = name in variants and any(key.startswith(RECORDED) for key in keys)
            recordings[task, name] = f"{task}-{name}" if apart else task
    tree = trees[tasks[0], memories[0]]
    device = parse_device(tree["device"])
    for tree in trees.values():
        tree["imitation"]["bfloat16"] = parse_bfloat16(tree["imitation"]["bfloat16"], device)
    one = len(tasks) == len(memories) == 1
    default = f"clone-{tasks[0]}-{memories[0]}" if one else "clone"
    return CloneSettings(
        trees=trees,
        recordings=recordings,
        tasks=tasks,
        memories=memories,
        seeds=parse_seeds(tree["seeds"]),
        device=device,
        out=Path(str(tree["out"])) if tree["out"] else Path("runs", default),
        resume=tree["resume"],
        workers=parse_workers(tree["workers"], device),
    )


LEAST: dict[str, int] = {
    "threads": 1,
    "checkpoint_seconds": 0,
    "demonstrations.episodes": 1,
    "demonstrations.noise": 0,
    "demonstrations.stray": 0,
    "demonstrations.seed": 0,
    "demonstrations.image": 1,
    "evaluation.every": 1,
    "evaluation.episodes": 1,
    "evaluation.final": 1,
    "evaluation.num_envs": 1,
    "policy.perceptual": 1,
    "policy.cognitive": 1,
    "policy.features": 1,
}
"""Numbers that only the command line reads, and the least each may be."""


def _variants(seen: Any) -> dict[str, list[str]]:
    """Check what a study calls its variants, and what they set."""
    if not isinstance(seen, dict):
        raise InvalidValueError(VARIANTS, seen, "a name each for lists of key=value")
    for name, arguments in seen.items():
        if not str(name).isidentifier() or name in choices("streams"):
            raise InvalidValueError(f"a name in {VARIANTS}", name, "words that name no memory")
        for argument in arguments if isinstance(arguments, list) else [arguments]:
            key, equals, _ = str(argument).partition("=")
            if not isinstance(arguments, list) or not equals or not key or key in ONCE:
                allowed = f"a list of key=value, key none of {', '.join(ONCE)}"
                raise InvalidValueError(f"{VARIANTS}.{name}", argument, allowed)
    return seen


def _names(what: str, seen: Any, allowed: list[str]) -> list[str]:
    if not isinstance(seen, list) or not seen or len(set(map(str, seen))) < len(seen):
        raise InvalidValueError(what, seen, "one name, or a list of different ones: [a,b]")
    for name in seen:
        if name not in allowed:
            raise unknown(what, str(name), allowed)
    return seen
