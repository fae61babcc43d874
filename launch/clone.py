"""`engram clone`: clones demonstrations with every memory, then writes one table and one figure."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from engram.kernels.errors import DataError, one_line
from engram.launch.clone_build import open_demonstrations
from engram.launch.clone_check import check_clone, check_first, take_folder
from engram.launch.clone_config import CloneSettings, compose_clone
from engram.launch.clone_figure import draw
from engram.launch.clone_results import (
    Finding,
    findings,
    learning,
    plain,
    table,
)
from engram.launch.clone_run import clone_job
from engram.launch.compare import show
from engram.launch.config import UsageError
from engram.launch.demos import record_into
from engram.launch.files import read_json, write, write_json
from engram.launch.folder import check
from engram.launch.jobs import run_jobs
from engram.launch.report import clone_page
from engram.launch.results import markdown, run_folder
from engram.launch.training import Job


def clone(arguments: list[str], console: Console) -> int:
    """Record demonstrations where there are none, clone them, evaluate, and report.

    Args:
        arguments: `key=value` settings.
        console: Where progress and table go.

    Returns:
        The exit status: 0, also after an interruption, whose checkpoints `resume=true` continues.
    """
    settings = compose_clone(arguments)
    jobs = _jobs(settings, console)
    done = run_jobs(jobs, workers=settings.workers, console=console, run=clone_job, unit="updates")
    if not done:
        console.print(f"Stopped; resume=true continues {settings.out}")
        return 0
    _report(settings, console)
    return 0


def _jobs(settings: CloneSettings, console: Console) -> list[Job]:
    """List the runs, seed by seed, and record what they learn from.

    Raises:
        EngramError: If a folder holds another run; nothing is recorded then.
    """
    for tree in settings.trees.values():
        check_clone(tree)
    _check_out(settings)
    given = [t for t in settings.trees.values() if t["demonstrations"]["folder"] is not None]
    for tree in given:
        take_folder(tree)
    missing: dict[Path, dict[str, Any]] = {}
    for names, tree in settings.trees.items():
        if tree["demonstrations"]["folder"] is None:
            folder = settings.out / "demonstrations" / settings.recordings[names]
            tree["demonstrations"]["folder"] = str(folder)
            episodes = tree["demonstrations"]["episodes"]
            if folder not in missing or episodes > missing[folder]["demonstrations"]["episodes"]:
                missing[folder] = tree
    several = len(settings.tasks) > 1
    jobs = [
        Job(
            memory=memory,
            seed=seed,
            tree=(tree := settings.trees[task, memory]),
            budget=tree["imitation"]["updates"],
            device=str(settings.device),
            folder=run_folder(settings.out / task, memory, seed),
            resume=settings.resume,
            task=task if several else "",
        )
        for seed in settings.seeds
        for task in settings.tasks
        for memory in settings.memories
    ]
    for job in jobs:
        check(job.folder, job.tree, resume=job.resume)
    for tree in _each_once(given):
        check_first(tree)
    _tell_left_out(given, console)
    for folder, tree in missing.items():
        record_into(folder, tree, workers=settings.workers, console=console)
    return jobs


def _each_once(trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return trees that differ in what they are shown; what reads damaged ones reads them whole."""
    once = {str((t["task"], t["demonstrations"], t["policy"]["told"])): t for t in trees}
    return list(once.values())


def _tell_left_out(trees: list[dict[str, Any]], console: Console) -> None:
    """Print which episodes of given folders are damaged, where such are left out."""
    wanted = [tree["demonstrations"] for tree in trees]
    for folder in sorted({d["folder"] for d in wanted if d["skip_damaged"]}):
        source = open_demonstrations(Path(folder), skip_damaged=True)
        source.close()
        for why in source.damage.values():
            console.print(f"left out: {why}", soft_wrap=True)


def _check_out(settings: CloneSettings) -> None:
    """Check that a table that stands there would not lose lines.

    Raises:
        UsageError: If it would.
        DataError: If the file with its lines is damaged.
    """
    path = settings.out / "results.json"
    if not path.exists():
        return
    try:
        before = {(str(row["task"]), str(row["memory"])) for row in read_json(path)}
    except (TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged: {one_line(error)}") from None
    if lost := sorted(before - settings.trees.keys()):
        names = ", ".join(f"{task} {memory}" for task, memory in lost)
        raise UsageError(
            f"out: {settings.out} holds results of {names}; allowed: to name these too, or "
            "another folder"
        )


def _report(settings: CloneSettings, console: Console) -> None:
    """Write table, figure and report of finished runs, and print the table."""
    out = settings.out
    found: list[Finding] = findings(out, settings.tasks, settings.memories, settings.seeds)
    curves = learning(out, settings.tasks, settings.memories, settings.seeds)
    header, cells = table(found)
    trained: dict[str, Any] = {
        task: settings.trees[task, settings.memories[0]]["task"]["settings"].get("gap")
        for task in settings.tasks
    }
    png = draw(found, curves, trained)
    write(out / "figure.png", png)
    write(out / "table.md", markdown(header, cells))
    write_json(out / "results.json", plain(found))
    named = {f"{task} {memory}": tree for (task, memory), tree in settings.trees.items()}
    config = OmegaConf.to_yaml(OmegaConf.create(named))
    write(out / "config.yaml", config)
    title = f"engram clone: {', '.join(settings.tasks)}"
    write(out / "report.html", clone_page(title, png, (header, cells), config))
    show(header, cells, console, title)
    console.print(f"Report: {out / 'report.html'}")
