"""The configuration of `engram clone`: tasks, memories and everything they share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
from engram.launch.variants import (
    VARIANTS,
    check_variants,
    named_in_errors,
    recording_name,
)

RUN = "clone"
GROUPS = ("task", "control", "streams", "vision", "denoising", "batches", "size", "study")
LISTS = {"task": "tasks", "memory": "memories"}
"""Keys that may name several, and where a study lists them."""


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
    asked = _sorted(arguments)
    common = compose_tree(asked.lists, run=RUN)
    tasks = _names("task", asked.named.get("task", common["tasks"]), choices("task"))
    variants = check_variants(common[VARIANTS], choices("streams"), _check_choice)
    allowed = choices("streams") + list(variants)
    memories = _names("memory", asked.named.get("memory", common["memories"]), allowed)
    own = {name: variants.get(name, [f"streams={name}"]) for name in memories}
    for name in asked.variants:
        if name not in memories:
            raise UsageError(f"{VARIANTS}.{name} is not run; allowed: memory=[{name},...]")
    _check_shared(asked.rest, tasks[0], own)
    for name in memories:
        if name in variants:
            with named_in_errors(name):
                check_keys(own[name], [f"task={tasks[0]}"], run=RUN, groups=GROUPS)
    trees, recordings = {}, {}
    for task in tasks:
        shared = [*asked.rest, f"task={task}"]
        plain = None
        for name in memories:
            if name not in variants:
                trees[task, name], recordings[task, name] = _tree([*shared, *own[name]]), task
                continue
            plain = plain or _tree(shared)
            keys = {a.partition("=")[0] for a in own[name]}
            kept = [a for a in shared if a.partition("=")[0] not in keys]
            with named_in_errors(name):
                tree = trees[task, name] = _tree([*kept, *own[name]])
                recordings[task, name] = recording_name(task, name, tree, plain)
    first = trees[tasks[0], memories[0]]
    device = parse_device(first["device"])
    for tree in trees.values():
        tree["imitation"]["bfloat16"] = parse_bfloat16(tree["imitation"]["bfloat16"], device)
    one = len(tasks) == len(memories) == 1
    default = f"clone-{tasks[0]}-{memories[0]}" if one else "clone"
    return CloneSettings(
        trees=trees,
        recordings=recordings,
        tasks=tasks,
        memories=memories,
        seeds=parse_seeds(first["seeds"]),
        device=device,
        out=Path(str(first["out"])) if first["out"] else Path("runs", default),
        resume=first["resume"],
        workers=parse_workers(first["workers"], device),
    )


def _check_shared(arguments: list[str], task: str, own: dict[str, list[str]]) -> None:
    """Refuse keys that the configuration of a memory does not have.

    Args:
        arguments: What all runs share.
        task: The first task.
        own: Arguments that choose each memory.
    """
    wrong: dict[str, UsageError] = {}
    for name, chosen in own.items():
        try:
            check_keys(arguments, [f"task={task}", *chosen], run=RUN, groups=GROUPS)
        except UsageError as error:
            wrong[name] = error
    if not wrong:
        return
    name, error = next(iter(wrong.items()))
    if len(wrong) < len(own):
        allowed = f"keys that each of {', '.join(own)} has; others belong in a variant"
        raise UsageError(f"memory={name}: {error}; allowed: {allowed}") from None
    raise error


class _Asked(NamedTuple):
    """Arguments by what they are for."""

    named: dict[str, list[str]]
    """Tasks and memories."""
    lists: list[str]
    """What decides which tasks, memories and variants there are."""
    variants: list[str]
    """Names of variants that were typed."""
    rest: list[str]
    """What all runs share."""


def _sorted(arguments: list[str]) -> _Asked:
    asked = _Asked({}, [], [], [])
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise UsageError(f"argument {argument!r} is not of the form key=value")
        if key in LISTS:
            names = (name.strip() for name in value.strip("[]").split(","))
            asked.named[key] = [name for name in names if name]
            continue
        if key == "streams":
            raise UsageError(f"argument {argument!r} names a memory; allowed: memory={value}")
        _check_choice(key, value)
        group, _, name = key.lstrip("+").partition(".")
        if group == VARIANTS:
            asked.lists.append(argument)
            asked.variants.extend([name] if name else [])
            continue
        asked.rest.append(argument)
        if key in (*GROUPS, *LISTS.values()):
            asked.lists.append(argument)
    return asked


def _check_choice(key: str, value: str) -> None:
    if key in GROUPS and value not in choices(key):
        raise unknown(key, value, choices(key))


def _tree(arguments: list[str]) -> dict[str, Any]:
    """Compose a configuration whose values have the types of the defaults."""
    groups = [a for a in arguments if a.partition("=")[0] in GROUPS]
    defaults = compose_tree(groups, run=RUN)
    tree = defaults if arguments == groups else compose_tree(arguments, run=RUN)
    return conform(tree, defaults, least=LEAST)


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


def _names(what: str, seen: Any, allowed: list[str]) -> list[str]:
    if not isinstance(seen, list) or not seen or len(set(map(str, seen))) < len(seen):
        raise InvalidValueError(what, seen, "one name, or a list of different ones: [a,b]")
    for name in seen:
        if name not in allowed:
            raise unknown(what, str(name), allowed)
    return seen
