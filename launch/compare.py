"""`engram train` and `engram compare`: run memories, then write one table and one figure."""

from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from engram.launch import results
from engram.launch.config import Settings, compose_settings, tree_for
from engram.launch.files import write, write_json
from engram.launch.jobs import run_jobs
from engram.launch.report import draw, report_page
from engram.launch.training import Job


def compare(arguments: list[str], console: Console, *, several: bool) -> int:
    """Train every memory with every seed, evaluate, and report.

    Args:
        arguments: `key=value` settings.
        console: Where progress and table go.
        several: Whether several memories may be named.

    Returns:
        The exit status: 0, also after an interruption, whose checkpoints `resume=true` continues.
    """
    settings = compose_settings(arguments, several=several)
    jobs = jobs_of(settings, arguments)
    done = run_jobs(jobs, workers=settings.workers, console=console)
    if not done:
        console.print(f"Stopped; resume=true continues {settings.out}")
        return 0
    report(settings, {job.memory: job.tree for job in jobs}, console)
    return 0


def jobs_of(settings: Settings, arguments: list[str]) -> list[Job]:
    """List the runs of a comparison, seed by seed, so that all memories advance together."""
    trees = {memory: tree_for(arguments, memory) for memory in settings.memories}
    return [
        Job(
            memory=memory,
            seed=seed,
            tree=trees[memory],
            budget=settings.budget,
            device=str(settings.device),
            folder=results.run_folder(settings.out, memory, seed),
            resume=settings.resume,
        )
        for seed in settings.seeds
        for memory in settings.memories
    ]


def report(settings: Settings, trees: dict[str, dict[str, Any]], console: Console) -> None:
    """Write table, figure and report of finished runs, and print the table."""
    out = settings.out
    found = results.rows(out, settings.memories, settings.seeds)
    header, cells = results.table(found)
    title = f"engram: {settings.env}"
    png = draw(title, found, results.curves(out, settings.memories, settings.seeds))
    write(out / "figure.png", png)
    write(out / "table.md", results.markdown(header, cells))
    write_json(out / "results.json", results.plain(found))
    config = OmegaConf.to_yaml(OmegaConf.create(trees))
    write(out / "config.yaml", config)
    times = results.time_table(found)
    page = report_page(title, png, (header, cells), times, config)
    write(out / "report.html", page)
    show(header, cells, console, title)
    show(*times, console, "where time went")
    console.print(f"Report: {out / 'report.html'}")


def show(header: list[str], cells: list[list[str]], console: Console, title: str) -> None:
    """Print a table."""
    table = Table(title=title)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for line in cells:
        table.add_row(*line)
    console.print(table)
