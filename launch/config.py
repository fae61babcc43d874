"""Composes a run's configuration and refuses, in one line, what it does not know."""

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import engram.configs
from engram.agents.cluster import RaySettings
from engram.kernels.errors import EngramError, InvalidValueError, one_line
from engram.launch.values import conform

GROUPS = ("env", "memory", "agent", "preset")


class UsageError(EngramError):
    """The command line says something that cannot be done."""


@dataclass(frozen=True)
class Settings:
    """The keys that every command shares, checked; the whole tree is in `tree`."""

    tree: dict[str, Any]
    """The composed configuration, resolved."""
    env: str
    memories: list[str]
    budget: int
    seeds: list[int]
    device: torch.device
    out: Path
    resume: bool
    workers: int


def choices(group: str) -> list[str]:
    """Names of the YAML files of a configuration group."""
    (folder,) = engram.configs.__path__
    return sorted(path.stem for path in Path(folder, group).glob("*.yaml"))


def unknown(
    what: str, seen: str, allowed: list[str], elsewhere: list[str] | None = None
) -> UsageError:
    """Build the error for a name that does not exist, close ones first.

    Args:
        what: Of what kind it is.
        seen: The name.
        allowed: Names that exist.
        elsewhere: Full names of what is called so in other places.
    """
    close = elsewhere or difflib.get_close_matches(seen, allowed, n=3)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return UsageError(f"{what} {seen!r} does not exist{hint}; allowed: {', '.join(allowed)}")


def compose_settings(arguments: list[str], *, several: bool) -> Settings:
    """Compose `key=value` arguments into settings.

    Args:
        arguments: As typed.
        several: Whether `memory` may name several memories, `memory=[none,gru]`.

    Raises:
        EngramError: On the first thing that is wrong, in one line.
    """
    memories, rest = _split_memories(arguments, several=several)
    check_keys(rest, [f"memory={memories[0]}"] if memories else [])
    arguments = [*rest, f"memory={memories[0]}"] if memories else rest
    tree, chosen = _compose(arguments)
    tree = conform(tree, compose_tree(_groups(arguments)))
    names = memories or (_names(tree["memories"]) if several else [chosen["memory"]])
    env = chosen["env"]
    out = tree["out"]
    default = Path("runs") / (f"compare-{env}" if several else f"{env}-{names[0]}")
    device = parse_device(tree["device"])
    return Settings(
        tree=tree,
        env=env,
        memories=names,
        budget=_whole("budget", tree["budget"]),
        seeds=parse_seeds(tree["seeds"]),
        device=device,
        out=Path(str(out)) if out else default,
        resume=tree["resume"],
        workers=_workers(tree, device),
    )


def ray_settings(tree: dict[str, Any]) -> RaySettings:
    """Return how a run is spread over processes.

    Raises:
        InvalidValueError: If a value cannot work, or the environments cannot be shared out.
    """
    for name, kind in (("address", str), ("wheel", str), ("object_store_memory", int)):
        seen = tree["ray"][name]
        if seen is not None and type(seen) is not kind:
            allowed = "text, or null" if kind is str else "a whole number of bytes, or null"
            raise InvalidValueError(f"ray.{name}", seen, allowed)
    try:
        ray = RaySettings(**tree["ray"])
    except TypeError as error:  # a key that was added with a plus
        raise UsageError(f"ray: {one_line(error)}") from None
    if ray.workers % ray.learners:
        allowed = f"0 and multiples of ray.learners = {ray.learners}"
        raise InvalidValueError("ray.workers", ray.workers, allowed)
    sharing = max(ray.workers, ray.learners)
    if tree["num_envs"] % sharing:
        name = "ray.workers" if sharing == ray.workers else "ray.learners"
        allowed = f"multiples of {name} = {sharing}"
        raise InvalidValueError("num_envs", tree["num_envs"], allowed)
    return ray


def tree_for(arguments: list[str], memory: str) -> dict[str, Any]:
    """Compose the configuration of one memory of a comparison."""
    _, rest = _split_memories(arguments, several=True)
    arguments = [*rest, f"memory={memory}"]
    return conform(compose_tree(arguments), compose_tree(_groups(arguments)))


def _groups(arguments: list[str], groups: tuple[str, ...] = GROUPS) -> list[str]:
    """Return those arguments that choose a file."""
    return [argument for argument in arguments if argument.partition("=")[0] in groups]


def _split_memories(arguments: list[str], *, several: bool) -> tuple[list[str], list[str]]:
    """Take the memory names out of the arguments."""
    memories: list[str] = []
    rest: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise UsageError(f"argument {argument!r} is not of the form key=value")
        if key in GROUPS and key != "memory" and value not in choices(key):
            raise unknown(key, value, choices(key))
        if key != "memory":
            rest.append(argument)
            continue
        names = [name.strip() for name in value.strip("[]").split(",") if name.strip()]
        if not names or (len(names) > 1 and not several):
            raise UsageError(f"memory is {value!r}; allowed: one of {', '.join(choices('memory'))}")
        memories = _names(names)
    return memories, rest


def _names(seen: Any) -> list[str]:
    """Check a list of memories."""
    if not isinstance(seen, list) or not seen or len(set(map(str, seen))) < len(seen):
        raise InvalidValueError("memories", seen, "a list of different memories, [none,gru]")
    for name in seen:
        if name not in choices("memory"):
            raise unknown("memory", str(name), choices("memory"))
    return seen


def check_keys(
    arguments: list[str],
    chosen: list[str],
    *,
    run: str = "train",
    groups: tuple[str, ...] = GROUPS,
) -> None:
    """Refuse keys that the configuration does not have, level by level.

    Args:
        arguments: As typed, without those in `chosen`.
        chosen: Arguments that choose files besides.
        run: Name of the YAML file of the whole run.
        groups: Keys that choose files.

    Raises:
        UsageError: On the first key that does not exist, or is to be taken away.
    """
    chosen = chosen + _groups(arguments, groups)
    tree: Any = None
    for argument in arguments:
        key = argument.partition("=")[0]
        if key.startswith("~"):
            raise UsageError(f"{argument!r} takes a key away; allowed: to set it, key=value")
        if key in groups:
            continue
        if tree is None:
            tree = compose_tree(chosen, run=run)
        if key.startswith("+"):
            key = key.lstrip("+")
            if _open(tree, key):
                key = key.rpartition(".")[0]
        node: Any = tree
        for depth, name in enumerate(key.split(".")):
            allowed = [k for k in node if not k.startswith("_")] if isinstance(node, dict) else []
            if name not in allowed:
                prefix = ".".join(key.split(".")[:depth])
                if not allowed:
                    raise UsageError(f"key {key!r} does not exist; {prefix} has no keys below it")
                what = f"key{' in ' + prefix if prefix else ''}"
                raise unknown(what, name, allowed, list(_ending(tree, key)))
            node = node[name]


def _open(tree: dict[str, Any], key: str) -> bool:
    """Whether a key that no file lists would be read: by a callable, or by a world as a setting."""
    node: Any = tree
    for name in key.split(".")[:-1]:
        node = node.get(name) if isinstance(node, dict) else None
        if name == "settings" or (isinstance(node, dict) and "_target_" in node):
            return True
    return False


def compose_tree(overrides: list[str], *, run: str = "train") -> dict[str, Any]:
    """Compose the YAML file of a run with Hydra; return the resolved tree."""
    return _compose(overrides, run)[0]


def _compose(overrides: list[str], run: str = "train") -> tuple[dict[str, Any], dict[str, str]]:
    """Return the resolved tree, and which file of each group it took."""
    GlobalHydra.instance().clear()
    try:
        OverridesParser.create().parse_overrides(overrides=overrides)
        with initialize_config_module("engram.configs", version_base="1.3"):
            config = compose(run, overrides, return_hydra_config=True)
        chosen = {str(group): str(name) for group, name in config.hydra.runtime.choices.items()}
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        resolved = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(one_line(error)) from error
    assert isinstance(resolved, dict)
    return resolved, chosen  # type: ignore[return-value]


def _whole(name: str, seen: Any) -> int:
    if isinstance(seen, bool) or not isinstance(seen, int) or seen < 1:
        raise InvalidValueError(name, seen, "a whole number, 1 or more")
    return seen


def parse_seeds(seen: Any) -> list[int]:
    """Turn the key `seeds`, a number of seeds or a list, into a list."""
    if isinstance(seen, list):
        good = all(isinstance(s, int) and not isinstance(s, bool) for s in seen)
        if not seen or not good or len(set(seen)) < len(seen):
            raise InvalidValueError("seeds", seen, "a number of seeds, or a list of different ones")
        if min(seen) < 0 or max(seen) >= 2**32:
            raise InvalidValueError("seeds", seen, "seeds from 0 to 2^32 - 1")
        return seen
    return list(range(_whole("seeds", seen)))


def parse_device(seen: Any) -> torch.device:
    """Turn the key `device` into a device that exists."""
    if seen == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(seen))
    except RuntimeError:
        device = torch.device("meta")
    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device.type == "cuda" and device.index is None and len(available) > 1:
        return device
    if str(device) not in available:
        raise InvalidValueError("device", seen, ["auto", *available])
    return device


def _workers(tree: dict[str, Any], device: torch.device) -> int:
    seen = tree["workers"]
    if ray_settings(tree).used:  # a run that has many processes has them to itself
        if seen not in ("auto", 1):
            raise InvalidValueError("workers", seen, "1 (runs at a time) where Ray spreads each")
        return 1
    return parse_workers(seen, device)


def parse_workers(seen: Any, device: torch.device) -> int:
    """Turn the key `workers` into a number of runs at a time."""
    if seen == "auto":
        return 1 if device.type == "cuda" else len(os.sched_getaffinity(0))
    return _whole("workers", seen)


def _ending(tree: dict[str, Any], key: str, above: str = "") -> Iterator[str]:
    """Yield the full names of keys that end with a shorter one."""
    for name, value in tree.items():
        full = above + str(name)
        if full.endswith(f".{key}"):
            yield full
        if isinstance(value, dict):
            yield from _ending(value, key, f"{full}.")


def parse_bfloat16(seen: Any, device: torch.device) -> bool:
    """Turn the key `bfloat16` into whether products run in it.

    `auto` is where the device computes in it: CPUs with AMX, where torch can tell, and every GPU
    that torch names. A CPU without has to imitate it, at up to twice the time of float32.
    """
    if seen == "auto":
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions
        return bool(capabilities.get("amx_bf16", False))
    if not isinstance(seen, bool):
        raise InvalidValueError("bfloat16", seen, "auto, true, false")
    return seen
