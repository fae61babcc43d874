"""`engram demos`: records the scripted policy of a task as a LeRobot data set."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from engram.agents.demonstrations import DemonstrationWriter, Episode
from engram.agents.demonstrations.recording import features_of, record
from engram.envs.manipulation import ManipulationEnv
from engram.envs.processes import without_sigint
from engram.launch.clone_config import compose_clone
from engram.launch.config import UsageError

ROBOT = "engram_arm"
BATCH = 16
"""Episodes that a process records before it hands them over."""


def demos(arguments: list[str], console: Console) -> int:
    """Record the demonstrations of a task.

    Args:
        arguments: `task=NAME`, `out=FOLDER`, `demonstrations.episodes=N` and so on.
        console: Where progress goes.

    Returns:
        The exit status.
    """
    settings = compose_clone(arguments)
    if len(settings.tasks) > 1:
        raise UsageError(f"task is {settings.tasks}; allowed: one")
    (tree,) = (settings.trees[settings.tasks[0], name] for name in settings.memories[:1])
    out = Path(tree["out"]) if tree["out"] else Path("demos", settings.tasks[0])
    record_into(out, tree, workers=settings.workers, console=console)
    return 0


def record_into(folder: Path, tree: dict[str, Any], *, workers: int, console: Console) -> None:
    """Record what a folder lacks of the demonstrations of a task.

    Which episode is the n-th follows from the seed alone: a recording that was stopped goes on
    where it was, and how many processes record changes nothing.

    Raises:
        InvalidValueError: If the folder holds other demonstrations.
        OracleFailedError: If the scripted policy cannot solve the task.
    """
    wanted = tree["demonstrations"]
    make = partial(_environment, tree)
    env = make()
    with DemonstrationWriter(folder, features=features_of(env), robot_type=ROBOT) as writer:
        missing = range(writer.episodes, wanted["episodes"])
        if not missing:
            return
        with _recorder(make, wanted, min(workers, len(missing))) as each:
            title = f"recording {tree['task']['name']}"
            for episode in track(
                each(missing), title, total=len(missing), console=console, transient=True
            ):
                writer.add(episode)
    console.print(f"{wanted['episodes']} demonstrations in {folder}")


@contextmanager
def _recorder(
    make: Callable[[], ManipulationEnv], wanted: dict[str, Any], workers: int
) -> Iterator[Callable[[range], Iterator[Episode]]]:
    """Yield what records episodes by their numbers, in order."""
    some = partial(_record, make, seed=wanted["seed"], noise=wanted["noise"])
    if workers == 1:
        yield lambda numbers: iter(some(numbers))
        return
    with without_sigint():
        # spawn: a fork would copy the renderer's context
        pool = multiprocessing.get_context("spawn").Pool(workers)
    try:
        yield lambda numbers: chain.from_iterable(
            pool.imap(
                partial(_several, some),
                (numbers[i : i + BATCH] for i in range(0, len(numbers), BATCH)),
            )
        )
    finally:
        pool.terminate()
        pool.join()


def _record(
    make: Callable[[], ManipulationEnv], numbers: range, *, seed: int, noise: float
) -> Iterator[Episode]:
    env = make()
    for number in numbers:
        yield record(env, seed=seed, number=number, noise=noise)


def _several(some: Callable[[range], Iterator[Episode]], numbers: range) -> list[Episode]:
    return list(some(numbers))


def _environment(tree: dict[str, Any]) -> ManipulationEnv:
    sight = tree["demonstrations"]
    return ManipulationEnv(
        tree["task"]["name"],
        cameras=() if sight["objects"] else tuple(sight["cameras"]),
        size=sight["image"],
        objects=sight["objects"],
        **tree["task"]["settings"],
    )
