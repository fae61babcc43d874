"""`engram demos`: records the scripted policy of a task as a LeRobot data set."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from engram.agents.demonstrations import DemonstrationWriter, Episode
from engram.agents.demonstrations.layout import PENDING
from engram.agents.demonstrations.pending import WaitingDamagedError
from engram.agents.demonstrations.recording import features_of, record
from engram.envs.manipulation import ManipulationEnv
from engram.envs.processes import without_sigint
from engram.kernels.errors import DataError, EngramError
from engram.launch.clone_build import build_world
from engram.launch.clone_config import compose_clone
from engram.launch.config import UsageError
from engram.launch.files import read_json, write_json
from engram.launch.variants import BEFORE, CONTROL, OF_READING, RECORDED_FORMAT, recorded_with

ROBOT = "engram_arm"
BATCH = 16
"""Episodes that a process records before it hands them over."""
RECORDING = "recording.json"
"""What a folder's demonstrations were recorded with."""

OTHERS = "out", "workers", "study", "control"
"""Keys of a recording that are neither the task's nor the demonstrations'."""
KEYS = "task, task.settings…, control, demonstrations…, study, out, workers"


class RecorderKilledError(EngramError):
    """A process that recorded was killed."""

    def __init__(self):
        super().__init__("a recording process was killed; the same command goes on where it was")


def demos(arguments: list[str], console: Console) -> int:
    """Record the demonstrations of a task.

    Args:
        arguments: `task=NAME`, `out=FOLDER`, `demonstrations.episodes=N` and so on.
        console: Where progress goes.

    Returns:
        The exit status.
    """
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("+")
        group, _, name = key.partition(".")
        if key not in OTHERS and group not in ("task", "demonstrations"):
            raise UsageError(f"{key} decides nothing of a recording; allowed: {KEYS}")
        if group == "demonstrations" and name in OF_READING and name != "episodes":
            raise UsageError(f"{key} is where to read from; allowed: out=FOLDER")
    settings = compose_clone(arguments)
    if len(settings.tasks) > 1:
        raise UsageError(f"task is {settings.tasks}; allowed: one")
    (tree,) = (settings.trees[settings.tasks[0], name] for name in settings.memories[:1])
    out = Path(str(tree["out"])) if tree["out"] else Path("demos", settings.tasks[0])
    record_into(out, tree, workers=settings.workers, console=console)
    return 0


def record_into(folder: Path, tree: dict[str, Any], *, workers: int, console: Console) -> None:
    """Record what a folder lacks of the demonstrations of a task.

    Which episode is the n-th follows from the seed alone: a recording that was stopped goes on
    where it was, and how many processes record changes nothing.

    Raises:
        InvalidValueError: If the folder holds demonstrations with other columns.
        UsageError: If it holds those of another recording.
        DataError: If what it holds is damaged.
        OracleFailedError: If the scripted policy cannot solve the task.
    """
    wanted = tree["demonstrations"]
    make = partial(build_world, tree)
    env = make()
    waiting = folder / PENDING
    if any(waiting.glob("*.damaged")):
        raise UsageError(
            f"{waiting} lost an episode, and with it the order; allowed: other folders"
        )
    features = features_of(env)
    try:
        with DemonstrationWriter(folder, features=features, robot_type=ROBOT) as writer:
            _claim(folder, tree, begun=writer.episodes > 0)
            missing = range(writer.episodes, wanted["episodes"])
            if missing:
                with _recorder(make, wanted, min(workers, len(missing))) as each:
                    title = f"recording {tree['task']['name']}"
                    for episode in track(
                        each(missing), title, total=len(missing), console=console, transient=True
                    ):
                        writer.add(episode)
            held = writer.episodes
    except WaitingDamagedError as error:  # each is worth no more than the seconds it took
        again = f"remove {waiting}: its episodes are recorded again"
        raise DataError(f"{error.seen}; {again}") from error
    console.print(f"{held} demonstrations in {folder}")


def _claim(folder: Path, tree: dict[str, Any], *, begun: bool) -> None:
    """Write what the recording in a folder is, or check that it is this one."""
    path = folder / RECORDING
    if not begun:
        write_json(path, recorded_with(tree))
        return
    if not path.exists():
        raise UsageError(f"out: {folder} holds demonstrations that engram did not record")
    check_recording(folder, tree)


def check_recording(folder: Path, tree: dict[str, Any]) -> None:
    """Check that a folder that engram recorded is of the recording that is asked for.

    Raises:
        UsageError: If it is not.
        DataError: If the note on the recording is damaged.
    """
    mine, theirs = recorded_with(tree), read_recording(folder)
    for key in sorted(theirs.keys() | mine.keys()):
        if theirs.get(key) != mine.get(key):
            raise differing(folder, key, mine.get(key), theirs.get(key))


def read_recording(folder: Path) -> dict[str, Any]:
    """Read what the demonstrations in a folder that engram recorded were recorded with.

    Raises:
        DataError: If the note on that is damaged or of another version.
    """
    path = folder / RECORDING
    theirs = read_json(path)
    if not isinstance(theirs, dict):
        raise DataError(f"{path} is damaged: it holds no JSON object")
    if (seen := theirs.get("format")) != RECORDED_FORMAT:
        seen = "of an earlier version" if seen is None else f"of format {seen!r}"
        raise DataError(f"{path} is {seen}; allowed: format {RECORDED_FORMAT}, recorded again")
    return {CONTROL: BEFORE, **theirs}


def differing(folder: Path, key: str, mine: Any, theirs: Any) -> UsageError:
    """Return the error that says in what a recording is another one."""
    named = key if key.startswith("task.") else f"demonstrations.{key}"
    return UsageError(
        f"{named} is {mine!r}; allowed: as the recording in {folder} began, {theirs!r}"
    )


@contextmanager
def _recorder(
    make: Callable[[], ManipulationEnv], wanted: dict[str, Any], workers: int
) -> Iterator[Callable[[range], Iterator[Episode]]]:
    """Yield what records episodes by their numbers, in order."""
    some = partial(_record, make, **{k: wanted[k] for k in ("seed", "noise", "stray")})
    if workers == 1:
        yield lambda numbers: iter(some(numbers))
        return
    # spawn: a fork would copy the renderer's context
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield partial(_ahead, pool, partial(_several, some), 2 * workers)
    except BrokenProcessPool:
        raise RecorderKilledError from None
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(
    pool: ProcessPoolExecutor, some: Callable[[range], list[Episode]], most: int, numbers: range
) -> Iterator[Episode]:
    """Record batches in processes; `most` wait at a time, as pictures fill the memory."""
    batches = deque(numbers[i : i + BATCH] for i in range(0, len(numbers), BATCH))
    waiting: deque[Future[list[Episode]]] = deque()
    while batches or waiting:
        while batches and len(waiting) < most:
            with without_sigint():  # the first ones start the processes
                waiting.append(pool.submit(some, batches.popleft()))
        yield from waiting.popleft().result()


def _record(
    make: Callable[[], ManipulationEnv], numbers: range, *, seed: int, noise: float, stray: float
) -> Iterator[Episode]:
    env = make()
    for number in numbers:
        yield record(env, seed=seed, number=number, noise=noise, stray=stray)


def _several(some: Callable[[range], Iterator[Episode]], numbers: range) -> list[Episode]:
    return list(some(numbers))
