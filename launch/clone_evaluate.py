"""`engram eval` of cloned policies: fresh episodes, also at gaps that no run was evaluated at."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from engram.agents.imitation_evaluation import evaluate_in_simulation
from engram.kernels.errors import DataError, InvalidValueError
from engram.launch.build import EVALUATION_SEED
from engram.launch.clone_build import build_worlds
from engram.launch.clone_check import check_gaps
from engram.launch.clone_results import Finding, of_seeds, table
from engram.launch.clone_saved import Cloned, load_clone, read_tree
from engram.launch.compare import show
from engram.launch.config import UsageError
from engram.launch.folder import binding, read_config


def evaluate_gaps(
    cloned: Cloned,
    tree: dict[str, Any],
    *,
    gaps: list[int],
    episodes: int,
    seed: int,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Let a policy act at every gap; return what was found by gap, and the chance of a guess.

    Args:
        cloned: Who acts.
        tree: The configuration of its run.
        gaps: Steps between what is shown and the decision.
        episodes: Of each gap.
        seed: Of worlds and noise.
        stopping: Asked after every step; once true, nothing is returned.
    """
    found: dict[str, dict[str, float]] = {}
    chance = 0.0
    for gap in gaps:
        worlds, instruction = build_worlds(
            tree, num_envs=min(tree["evaluation"]["num_envs"], episodes), gap=gap
        )
        try:
            outcome = evaluate_in_simulation(
                cloned.policy,
                worlds,
                instruction,
                cloned.language,
                episodes=episodes,
                seed=seed,
                stopping=stopping,
            )
        finally:
            worlds.close()
        if outcome is None:
            return None
        found[str(gap)] = outcome._asdict()
        chance = worlds.first_choice_chance
    return {"chance": chance, "gaps": found}


class Asked(NamedTuple):
    """What `engram eval` was asked for."""

    gaps: list[int] | None
    """Those of the run where none are given."""
    episodes: int | None
    """Per gap; likewise."""
    seed: int
    """1 or more; another one, other episodes."""
    device: torch.device
    model: str | None
    """Folder of the pretrained model that the policies see with, if it is not where it was."""


def evaluate_clones(runs: list[Path], asked: Asked, out: Path, console: Console) -> int:
    """Evaluate cloned policies; the seeds that share a parent folder make one row.

    Args:
        runs: Their folders.
        asked: How.
        out: The folder that was named.
        console: Where the table goes.

    Raises:
        UsageError: If a task cannot have a gap, if runs side by side differ by more than seeds, or
            if a model is named that a policy does not have.
        DataError: If a run is damaged, or the model is another than it learnt with.
    """
    groups: dict[Path, list[Path]] = {}
    for run in runs:
        groups.setdefault(run.parent, []).append(run)
    trees = {folder: _common(folder, seeds, asked.model) for folder, seeds in groups.items()}
    for tree in trees.values():
        if asked.gaps is not None:
            try:
                check_gaps({**tree["task"], "gaps": asked.gaps})
            except InvalidValueError as error:
                raise UsageError(str(error).replace("task.gaps", "gaps", 1)) from None
    named = {folder: _named(folder, seeds, trees[folder]) for folder, seeds in groups.items()}
    found: list[Finding] = []
    for folder, seeds in groups.items():
        task, memory = named[folder]
        if list(named.values()).count(named[folder]) > 1:  # of several studies
            memory = str(folder.relative_to(out)) if folder.is_relative_to(out) else str(folder)
        numbers = [int(read_config(run)["seed"]) for run in seeds]
        facts = list(_measured(seeds, trees[folder], asked))
        _tell_unfinished(memory, trees[folder], facts, console)
        found += of_seeds(task, memory, numbers, facts)
    header, cells = table(found)
    show(header, cells, console, f"engram eval {out}")
    console.print("95 %: half the interval of the mean over seeds; none where there is one seed.")
    return 0


def _common(folder: Path, runs: list[Path], model: str | None) -> dict[str, Any]:
    """Return the configuration of runs that differ by their seeds."""
    trees = [read_tree(run, model) for run in runs]
    if any(binding(tree) != binding(trees[0]) for tree in trees):
        raise UsageError(
            f"out: the runs in {folder} have different settings; "
            "allowed: folders whose runs differ by their seeds alone"
        )
    return trees[0]


def _named(folder: Path, runs: list[Path], tree: dict[str, Any]) -> tuple[str, str]:
    """Return task and memory of runs that differ by their seeds."""
    memories = {str(read_config(run)["memory"]) for run in runs}
    if len(memories) > 1:
        raise DataError(f"{folder} holds runs of {sorted(memories)}; allowed: of one memory")
    return str(tree["task"]["name"]), memories.pop()


def _measured(runs: list[Path], tree: dict[str, Any], asked: Asked) -> Iterator[dict[str, Any]]:
    """Yield what the runs show, as `evaluation.json` says it."""
    for run in runs:
        cloned, _ = load_clone(run, asked.device, asked.model)
        measured = evaluate_gaps(
            cloned,
            tree,
            gaps=tree["task"]["gaps"] if asked.gaps is None else asked.gaps,
            episodes=tree["evaluation"]["final"] if asked.episodes is None else asked.episodes,
            seed=EVALUATION_SEED + 7919 * asked.seed + read_config(run)["seed"],
        )
        assert measured is not None
        yield {
            **measured,
            "updates": cloned.updates,
            "seconds": cloned.seconds,
            "parameters": _count(cloned.policy),
            "memory_parameters": _count(cloned.policy.memory),
        }


def _tell_unfinished(
    memory: str, tree: dict[str, Any], facts: list[dict[str, Any]], console: Console
) -> None:
    """Print which runs had more to learn."""
    whole = tree["imitation"]["updates"]
    made = [fact["updates"] for fact in facts]
    if min(made) < whole:
        console.print(f"{memory}: after {', '.join(map(str, made))} of {whole} updates")


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
