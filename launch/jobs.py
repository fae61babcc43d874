"""Runs jobs side by side in worker processes, with one progress bar, stoppable at any time."""

import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from engram.agents.cluster import joined
from engram.agents.training import Report
from engram.envs.processes import without_sigint
from engram.kernels.errors import EngramError
from engram.launch.config import ray_settings
from engram.launch.run import run_job
from engram.launch.training import Job

log = logging.getLogger(__name__)


class JobFailedError(EngramError):
    """A run ended with an error; the message is that of the run."""


Run = Callable[..., Any]
"""Runs a job: `run(job, report=..., stopping=...)`, which returns None if it was stopped."""


def run_jobs(
    jobs: list[Job], *, workers: int, console: Console, run: Run = run_job, unit: str = "steps"
) -> bool:
    """Run all jobs.

    On SIGINT or SIGTERM every running job saves a checkpoint and ends.

    Args:
        jobs: What to run, in this order.
        workers: Runs at a time; with one, everything happens in this process.
        console: Where the progress bar goes.
        run: What runs one, a function at the top of a module; its reports have `steps`,
            `steps_per_second`, `episodes` and `score`.
        unit: What a budget counts.

    Returns:
        Whether all jobs were finished.

    Raises:
        EngramError: If a job fails; the others are stopped, with checkpoints.
    """
    with _signals() as stopping, _bar(jobs, console, unit) as advance:
        if workers == 1 or len(jobs) == 1:
            with _ray(jobs):
                return _run_here(jobs, run, stopping, advance)
        return _run_in_workers(jobs, run, min(workers, len(jobs)), stopping, advance)


def _ray(jobs: list[Job]) -> AbstractContextManager[None]:
    """Join Ray once for all runs, where they need it."""
    if "ray" not in jobs[0].tree:
        return nullcontext()
    settings = ray_settings(jobs[0].tree)
    cuda = jobs[0].device.startswith("cuda")
    gpus = settings.learners if cuda and settings.learners > 1 else 0
    return joined(settings, gpus=gpus) if settings.used else nullcontext()


def _run_here(
    jobs: list[Job],
    run: Run,
    stopping: threading.Event,
    advance: Callable[[Job, Report], None],
) -> bool:
    for job in jobs:
        torch.set_num_threads(job.tree["threads"])
        result = run(job, report=lambda r, j=job: advance(j, r), stopping=stopping.is_set)
        if result is None:
            return False
    return True


def _run_in_workers(
    jobs: list[Job],
    run: Run,
    workers: int,
    stopping: threading.Event,
    advance: Callable[[Job, Report], None],
) -> bool:
    """Hand jobs to worker processes, one pipe each: a worker that dies blocks nobody's lock."""
    with _crew(run, workers) as crew:
        return _hand_out(jobs, crew, stopping, advance)


@contextmanager
def _crew(run: Run, workers: int) -> Iterator[dict[Any, BaseProcess]]:
    """Start workers; yield them by their pipes, and leave none behind."""
    # spawn: a fork would copy a torch that has already started threads
    context = multiprocessing.get_context("spawn")
    crew: dict[Any, BaseProcess] = {}
    with without_sigint():
        for _ in range(workers):
            here, there = context.Pipe()
            # no daemon: environments may have processes of their own
            process = context.Process(target=_work, args=(run, there))
            process.start()
            there.close()
            crew[here] = process
    try:
        yield crew
    finally:
        for pipe, process in crew.items():
            process.terminate()
            pipe.close()
            process.join()


def _hand_out(
    jobs: list[Job],
    crew: dict[Any, BaseProcess],
    stopping: threading.Event,
    advance: Callable[[Job, Report], None],
) -> bool:
    waiting, at_work = list(jobs), dict[Any, Job]()
    finished, failure = 0, None
    told_to_stop = False
    while crew:
        stop = stopping.is_set() or failure is not None
        if stop and not told_to_stop:
            told_to_stop = True
            for process in crew.values():
                process.terminate()  # workers answer SIGTERM with a checkpoint
        for pipe in wait(list(crew), timeout=0.2):
            try:
                kind, what = pipe.recv()  # type: ignore[union-attr]
            except (EOFError, ConnectionResetError):
                crew.pop(pipe).join()
                if pipe in at_work and failure is None and not told_to_stop:
                    failure = JobFailedError(
                        f"{at_work[pipe].name}: its process was killed; "
                        "resume=true continues it from its last checkpoint"
                    )
                continue
            if kind == "report":
                advance(at_work[pipe], what)
                continue
            job = at_work.pop(pipe, None)
            if kind == "finished":
                finished += 1
            elif kind == "failed" and failure is None:
                failure = JobFailedError(f"{job.name if job else 'a worker'}: {what}")
            following = None if told_to_stop or failure or not waiting else waiting.pop(0)
            if following is not None:
                at_work[pipe] = following
            pipe.send(following)  # type: ignore[union-attr]
    if failure is not None:
        raise failure
    return finished == len(jobs)


def _work(run: Run, pipe: Any) -> None:
    """Run jobs until there are none; SIGTERM ends the running one with a checkpoint."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    try:
        pipe.send(("ready", None))
        while (job := pipe.recv()) is not None:
            pipe.send(_outcome(run, job, lambda r: pipe.send(("report", r)), stopping.is_set))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # whom this worker works for is gone


def _outcome(
    run: Run, job: Job, report: Callable[[Report], None], stopping: Callable[[], bool]
) -> tuple[str, str | None]:
    """Run a job; say how it ended."""
    torch.set_num_threads(job.tree["threads"])
    try:
        result = run(job, report=report, stopping=stopping)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except (EngramError, OSError) as error:
        return "failed", str(error)
    except Exception as error:
        log.exception("%s", job.name)
        return "failed", f"{type(error).__name__}: {error}"
    return "stopped" if result is None else "finished", None


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event while jobs run."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        log.warning("%s: saving checkpoints", signal.Signals(number).name)
        stopping.set()

    if threading.current_thread() is not threading.main_thread():
        yield stopping  # only the main thread receives signals
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(jobs: list[Job], console: Console, unit: str) -> Iterator[Callable[[Job, Report], None]]:
    """Show one bar for all steps, and the last score of every memory."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[scores]}"),
    )
    steps: dict[str, int] = {}
    speeds: dict[str, float] = {}
    scores: dict[str, float] = {}
    total = sum(job.budget for job in jobs)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=total, speed="", scores="")

        def advance(job: Job, report: Report) -> None:
            steps[job.name] = int(report["steps"])
            speeds[job.name] = report["steps_per_second"]
            if report["episodes"]:
                scores[job.subject] = report["score"]
            running = [n for n, s in steps.items() if s < job.budget] or [job.name]
            speed = sum(speeds[name] for name in running)
            progress.update(
                task,
                completed=min(sum(steps.values()), total),
                speed=f"{speed:,.0f} {unit}/s",
                scores="  ".join(f"{name} {score:.2f}" for name, score in scores.items()),
            )

        yield advance
        if not console.is_terminal:
            console.print("  ".join(f"{name} {score:.2f}" for name, score in scores.items()))
