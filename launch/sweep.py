"""`engram sweep`: searches any configuration keys with Ray Tune; resumable; a table, a figure."""

import itertools
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from engram.agents.cluster import joined
from engram.agents.seeds import derive
from engram.agents.training import Report
from engram.kernels.errors import DataError, EngramError, InvalidValueError, one_line
from engram.launch.build import build_settings
from engram.launch.compare import show
from engram.launch.config import Settings, UsageError, compose_settings, ray_settings
from engram.launch.files import read_json, write, write_json
from engram.launch.folder import locked
from engram.launch.results import markdown
from engram.launch.run import run_job
from engram.launch.search_space import Choices, Interval, Space, as_tune, search_space
from engram.launch.sweep_results import FAILURE, STOPPED, draw, found_trials, summary
from engram.launch.training import Job

FORMAT = 1
FREE = ("resume", "out", "device", "mirror", "checkpoint_seconds", "threads")
"""Arguments that may differ when a sweep goes on; with them all of `ray.`"""


def sweep(arguments: list[str], console: Console) -> int:
    """Train every point of the search space with every seed, and report.

    A trial is one point with one seed; it has a folder below `out/trials`, is resumed from its own
    checkpoint, and reports after every rollout, so that with `sweep.halving=true` ASHA (Li et al.
    2020, arXiv 1810.05934) may end it early by its training score.

    Args:
        arguments: `key=value` settings; those with lists and intervals are searched.
        console: Where progress and table go.

    Returns:
        The exit status: 0, also after an interruption, which `resume=true` continues; 2 where
        trials failed.
    """
    fixed, space = search_space(arguments)
    settings = compose_settings([*fixed, *_first(space)], several=False)
    _check(settings, fixed, space)
    named = settings.tree["out"] is not None
    out = (settings.out if named else settings.out.with_name(f"sweep-{settings.env}")).resolve()
    points = _points(space) if settings.tree["sweep"]["grid"] else 1
    total = points * settings.tree["sweep"]["samples"] * len(settings.seeds)
    console.print(f"{total} trials of {settings.budget:,} steps in {out}")
    ray = ray_settings(settings.tree)
    ray = replace(ray, workers=1, cpus_per_worker=ray.cpus_per_learner)  # room for one trial
    with locked(out), joined(ray, gpus=int(settings.device.type == "cuda")):
        _claim(out, arguments, resume=settings.resume)
        _tune(settings, fixed, space, out, console, total)
    trials = found_trials(out)
    header, cells = summary(trials, list(space))
    if trials:
        write(out / "table.md", markdown(header, cells))
        write(out / "figure.png", draw(f"engram sweep: {settings.env}", trials, list(space)))
        write_json(out / "results.json", [trial._asdict() for trial in trials])
        show(header, cells, console, f"engram sweep: {settings.env}")
        console.print(f"Figure: {out / 'figure.png'}")
    reasons = dict.fromkeys(trial.failure for trial in trials if trial.failure)
    for reason in reasons:
        failed = sum(trial.failure == reason for trial in trials)
        print(f"engram: {failed} of {total} trials failed: {reason}", file=sys.stderr)
    ended = sum(trial.score is not None or trial.stopped for trial in trials)
    if ended < total:
        console.print(f"{ended} of {total} trials have ended; resume=true continues {out}")
    return 2 if reasons else 0


def _tune(
    settings: Settings, fixed: list[str], space: Space, out: Path, console: Console, total: int
) -> None:
    """Run all trials."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    # Paths in the configuration are relative to here; Ray Tune would go to a folder of the trial.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    options = settings.tree["sweep"]
    cuda = settings.device.type == "cuda"
    resources = {"CPU": settings.tree["ray"]["cpus_per_learner"], "GPU": float(cuda)}
    trainable = tune.with_resources(
        tune.with_parameters(_trial, fixed=fixed, out=out, budget=settings.budget), resources
    )
    if tune.Tuner.can_restore(str(out / "tune")):
        tuner = tune.Tuner.restore(
            str(out / "tune"), trainable, resume_unfinished=True, resume_errored=True
        )
    else:
        scheduler = None
        if options["halving"]:
            scheduler = ASHAScheduler(
                time_attr="steps",
                max_t=settings.budget,
                grace_period=max(1, int(options["first"] * settings.budget)),
                reduction_factor=options["reduction"],
            )
        tuner = tune.Tuner(
            trainable,
            param_space={
                **as_tune(space, grid=options["grid"]),
                "seed": tune.grid_search(settings.seeds),
            },
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=options["samples"],
                scheduler=scheduler,
                # Every seed, and every point of the grid, gets the same draws.
                search_alg=BasicVariantGenerator(
                    constant_grid_search=True, random_state=derive(settings.seeds[0], "sweep")
                ),
            ),
            run_config=tune.RunConfig(name="tune", storage_path=str(out), verbose=0),
        )
    with _bar(out, total * settings.budget, console):
        results = tuner.fit()
    for result in results:
        told = result.metrics or {}
        if told.get("done") and not told.get("finished") and "folder" in told:
            (Path(told["folder"]) / STOPPED).touch()  # by ASHA, and for good


def _trial(config: dict[str, Any], *, fixed: list[str], out: Path, budget: int) -> None:
    """Run one point with one seed, in a process of Ray Tune."""
    from ray import tune

    point = {key: value for key, value in config.items() if key != "seed"}
    # Two trials may have drawn the same point; Tune numbers them, and keeps the numbers.
    number = str(tune.get_context().get_trial_id()).rpartition("_")[2]
    folder = out / "trials" / f"{number}-seed{config['seed']}"
    write_json(folder / "trial.json", {"format": FORMAT, "point": point, "seed": config["seed"]})
    evaluation, failure = folder / "evaluation.json", folder / FAILURE
    failure.unlink(missing_ok=True)
    if evaluation.exists():  # it ended before the sweep was interrupted
        tune.report({"steps": budget, "score": read_json(evaluation)["score"], "finished": True})
        return
    last = -math.inf

    def report(told: Report) -> None:
        nonlocal last
        last = told["score"] if math.isfinite(told["score"]) else last
        if math.isfinite(last):
            # At the budget ASHA ends a trial: that is for the last report to say.
            steps = min(told["steps"], budget - 1)
            tune.report({"steps": steps, "score": last, "folder": str(folder)})

    try:
        settings = compose_settings([*fixed, *_arguments(point)], several=False)
        torch.set_num_threads(settings.tree["threads"])
        job = Job(
            memory=settings.memories[0],
            seed=config["seed"],
            tree=settings.tree,
            budget=budget,
            device=str(settings.device),
            folder=folder,
            resume=True,
        )
        result = run_job(job, report=report, stopping=lambda: False)
    except (EngramError, OSError) as error:
        write(failure, one_line(error))
        raise
    assert result is not None
    tune.report({"steps": budget, "score": result.score, "finished": True})


def _arguments(point: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in point.items()]


@contextmanager
def _bar(out: Path, steps: int, console: Console) -> Iterator[None]:
    """Show the steps of all trials, read from what they write."""
    ended = threading.Event()
    with Progress(console=console) as progress:
        task = progress.add_task("sweep", total=steps)

        def watch() -> None:
            while not ended.wait(1.0):
                progress.update(task, completed=sum(t.steps for t in found_trials(out)))

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()


def _first(space: Space) -> list[str]:
    """Return the arguments of one point."""
    return [
        f"{key}={values.values[0] if isinstance(values, Choices) else values.low}"
        for key, values in space.items()
    ]


def _points(space: Space) -> int:
    """Return the number of points of the grid."""
    return math.prod(len(v.values) for v in space.values() if isinstance(v, Choices))


def _check(settings: Settings, fixed: list[str], space: Space) -> None:
    """Refuse a space any of whose ends or listed values cannot be composed, before hours pass."""
    for name in ("workers", "learners"):
        seen, one = settings.tree["ray"][name], 0 if name == "workers" else 1
        if seen != one:
            raise InvalidValueError(f"ray.{name}", seen, f"{one} in a sweep: a trial is a process")
    if settings.tree["mirror"] is not None:
        raise InvalidValueError("mirror", settings.tree["mirror"], "null in a sweep")
    if settings.device.index is not None:
        raise InvalidValueError("device", str(settings.device), "auto, cpu, cuda in a sweep")
    options = settings.tree["sweep"]
    if options["first"] > 1:
        raise InvalidValueError("sweep.first", options["first"], "a share of the budget, 0 to 1")
    drawn = not options["grid"] or any(isinstance(v, Interval) for v in space.values())
    if options["samples"] > 1 and not drawn:
        allowed = "1 where nothing is drawn (no interval, and sweep.grid=true)"
        raise InvalidValueError("sweep.samples", options["samples"], allowed)
    for key in space:
        if key in ("seeds", "budget", "out", "resume", "device", "workers"):
            raise UsageError(f"{key} cannot be searched; allowed: keys of the task and the agent")
    for key, values in space.items():
        ends = values.values if isinstance(values, Choices) else _ends(values)
        others = [f for f in _first(space) if not f.startswith(f"{key}=")]
        for value in ends:
            found = compose_settings([*fixed, *others, f"{key}={value}"], several=False)
            build_settings(found.tree)


def _ends(interval: Interval) -> list[str]:
    return [str(interval.low), str(interval.high)]


def _claim(out: Path, arguments: list[str], *, resume: bool) -> None:
    """Write what is searched, or check that it is what the folder holds.

    Raises:
        UsageError: If the folder holds a sweep and `resume` is false, or another sweep.
        DataError: If what it holds is damaged.
    """
    path = out / "sweep.json"
    mine = sorted(a for a in arguments if not a.startswith((*(f"{key}=" for key in FREE), "ray.")))
    if not path.exists():
        write_json(path, {"format": FORMAT, "arguments": mine})
        return
    if not resume:
        raise UsageError(f"out: {out} already holds a sweep; allowed: resume=true, another folder")
    held = read_json(path)
    theirs = held.get("arguments") if isinstance(held, dict) else None
    if not isinstance(theirs, list) or held.get("format") != FORMAT:
        raise DataError(f"{path} is damaged or of another version; allowed: format {FORMAT}")
    for a, b in itertools.zip_longest(mine, theirs):
        if a != b:
            raise UsageError(f"resume: argument {a!r}; allowed: as the sweep in {out} began, {b!r}")
