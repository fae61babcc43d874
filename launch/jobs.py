"""Runs jobs side by side in worker processes, with one progress bar, stoppable at any time."""

import logging
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from engram.agents.training import Report
from engram.kernels.errors import EngramError
from engram.launch.run import Job, run_job

log = logging.getLogger(__name__)


class JobFailedError(EngramError):
    """A run ended with an error; the message is that of the run."""


def run_jobs(jobs: list[Job], *, workers: int, console: Console) -> bool:
    """Run all jobs.

    On SIGINT or SIGTERM every running job saves a checkpoint and ends.

    Args:
        jobs: What to run, in this order.
        workers: Runs at a time; with one, everything happens in this process.
        console: Where the progress bar goes.

    Returns:
        Whether all jobs were finished.

    Raises:
        EngramError: If a job fails; the others are stopped, with checkpoints.
    """
    with _signals() as stopping, _bar(jobs, console) as advance:
        if workers == 1 or len(jobs) == 1:
            return _run_here(jobs, stopping, advance)
        return _run_in_workers(jobs, min(workers, len(jobs)), stopping, advance)


def _run_here(
    jobs: list[Job], stopping: threading.Event, advance: Callable[[Job, Report], None]
) -> bool:
    for job in jobs:
        result = run_job(job, report=lambda r, j=job: advance(j, r), stopping=stopping.is_set)
        if result is None:
            return False
    return True


def _run_in_workers(
    jobs: list[Job], workers: int, stopping: threading.Event, advance: Callable[[Job, Report], None]
) -> bool:
    # spawn: a fork would copy a torch that has already started threads
    context = multiprocessing.get_context("spawn")
    todo, told, stop = context.SimpleQueue(), context.Queue(), context.Event()
    for index in [*range(len(jobs)), *[None] * workers]:
        todo.put(index)
    threads = max(1, torch.get_num_threads() // workers)
    processes = [
        context.Process(target=_work, args=(jobs, todo, told, stop, threads), daemon=True)
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    finished, failure = 0, None
    try:
        while any(process.is_alive() for process in processes) or not told.empty():
            if stopping.is_set():
                stop.set()
            try:
                index, kind, what = told.get(timeout=0.2)
            except queue.Empty:
                continue
            if kind == "report":
                advance(jobs[index], what)
            elif kind == "finished":
                finished += 1
            elif kind == "failed" and failure is None:
                failure = JobFailedError(f"{jobs[index].name}: {what}")
                stop.set()
    finally:
        stop.set()
        for process in processes:
            process.join()
    dead = [process.exitcode for process in processes if process.exitcode]
    if failure is None and dead:
        failure = JobFailedError(
            f"a worker process ended with exit code {dead[0]}; resume=true continues its run"
        )
    if failure is not None:
        raise failure
    return finished == len(jobs)


def _work(jobs: list[Job], todo: Any, told: Any, stop: Any, threads: int) -> None:
    """Take jobs until there are none; the parent process handles the signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(threads)
    while not stop.is_set() and (index := todo.get()) is not None:
        try:
            result = run_job(
                jobs[index],
                report=lambda r, i=index: told.put((i, "report", r)),
                stopping=stop.is_set,
            )
        except EngramError as error:
            told.put((index, "failed", str(error)))
            return
        if result is not None:
            told.put((index, "finished", None))


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
def _bar(jobs: list[Job], console: Console) -> Iterator[Callable[[Job, Report], None]]:
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
                scores[job.memory] = report["score"]
            running = [n for n, s in steps.items() if s < job.budget] or [job.name]
            speed = sum(speeds[name] for name in running)
            progress.update(
                task,
                completed=min(sum(steps.values()), total),
                speed=f"{speed:,.0f} steps/s",
                scores="  ".join(f"{name} {score:.2f}" for name, score in scores.items()),
            )

        yield advance
        if not console.is_terminal:
            console.print("  ".join(f"{name} {score:.2f}" for name, score in scores.items()))
