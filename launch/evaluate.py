"""`engram eval`: trained runs on fresh seeds."""

from pathlib import Path
from typing import Any

from rich.console import Console

from engram.launch.build import EVALUATION_SEED, build_stream
from engram.launch.clone_evaluate import Asked, evaluate_clones
from engram.launch.clone_saved import MODEL, SIGHT
from engram.launch.compare import show
from engram.launch.config import UsageError, parse_device, unknown
from engram.launch.evaluation import evaluate, interval
from engram.launch.folder import CHECKPOINT, binding
from engram.launch.run import load_policy

OF_CLONES, OF_AGENTS = ("gaps", MODEL), ("greedy",)
"""Keys that only runs of `engram clone` have, and only others."""
KEYS = ("out", "episodes", "seed", "device", *OF_CLONES, *OF_AGENTS)


def evaluate_runs(arguments: list[str], console: Console) -> int:
    """Evaluate every run below a folder; the seeds that share a parent folder make one row.

    Args:
        arguments: `out=<folder>`, and optionally `episodes`, `greedy`, `seed` (added to that of
            every run; another one, other episodes), `device`, and of runs of `engram clone`
            `gaps=[5,60]` and `policy.vision.path`, of a pretrained model that was moved.
        console: Where the table goes.
    """
    given = _parse(arguments)
    if "out" not in given:
        raise UsageError("out is missing; allowed: out=<folder of a run or of a comparison>")
    out = Path(given["out"])
    runs = sorted(path.parent for path in out.rglob(CHECKPOINT))
    if not runs:
        raise UsageError(
            f"out: {out} holds no checkpoint; allowed: a folder that train or clone wrote"
        )
    device = parse_device(given.get("device", "auto"))
    shift = _number("seed", given.get("seed", "1"))
    clones = [run for run in runs if (run / SIGHT).exists()]
    if clones and len(clones) < len(runs):
        raise UsageError(f"out: {out} holds runs of train and of clone; allowed: one of them")
    for key in OF_AGENTS if clones else OF_CLONES:
        if key in given:
            kind = "clone" if clones else "train"
            raise UsageError(f"{key} means nothing to runs of {kind}; allowed: other keys")
    if clones:
        episodes = _number("episodes", given["episodes"]) if "episodes" in given else None
        gaps = _numbers(given["gaps"]) if "gaps" in given else None
        asked = Asked(gaps, episodes, shift, device, given.get(MODEL))
        return evaluate_clones(clones, asked, out, console)
    groups: dict[Path, list[list[Any]]] = {}
    trees: dict[Path, dict[str, Any]] = {}
    for run in runs:
        policy, config, facts = load_policy(run, device)
        tree = binding(config["tree"])
        if trees.setdefault(run.parent, tree) != tree:
            raise UsageError(
                f"out: the runs in {run.parent} have different settings; "
                "allowed: folders whose runs differ by their seeds alone"
            )
        settings = config["tree"]["evaluation"]
        seed = EVALUATION_SEED + 7919 * shift + config["seed"]
        stream = build_stream(
            config["tree"],
            num_envs=int(settings["num_envs"]),
            device=device,
            seed=seed,
            evaluation=True,
        )
        result = evaluate(
            policy,
            stream,
            episodes=_number("episodes", given.get("episodes", str(settings["episodes"]))),
            greedy=_truth(given.get("greedy", str(settings["greedy"]).lower())),
            seed=seed,
            stopping=lambda: False,
        )
        assert result is not None
        chance = getattr(stream.env, "chance", None)
        optimum = getattr(stream.env, "optimum", None)
        stream.env.close()
        groups.setdefault(run.parent, []).append(
            [result, chance, optimum, facts["steps"], config["memory"]]
        )
    header = [
        "runs",
        "memory",
        "score",
        "95 %",
        "seeds",
        "episodes",
        "chance",
        "optimum",
        "train steps",
    ]
    cells = []
    for folder, found in groups.items():
        mean, half = interval([result.score for result, *_ in found])
        if len(found) == 1:
            half = found[0][0].interval
        _, chance, optimum, steps, memory = found[0]
        cells.append(
            [
                str(folder.relative_to(out) if folder.is_relative_to(out) else folder),
                memory,
                f"{mean:.3f}",
                f"± {half:.3f}",
                str(len(found)),
                str(sum(result.episodes for result, *_ in found)),
                *("–" if value is None else f"{value:.3f}" for value in (chance, optimum)),
                f"{steps:,}",
            ]
        )
    show(header, cells, console, f"engram eval {out}")
    console.print(
        "95 %: half the interval of the mean, over seeds; over episodes where there is one seed."
    )
    return 0


def _parse(arguments: list[str]) -> dict[str, str]:
    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UsageError(f"argument {argument!r} is not of the form key=value")
        if key not in KEYS:
            raise unknown("key", key, list(KEYS))
        given[key] = value
    return given


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise UsageError(f"{name} is {text!r}; allowed: a whole number, 1 or more")
    return int(text)


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.removeprefix("[").removesuffix("]").split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"gaps is {text!r}; allowed: whole numbers, [5,60]")
    return [int(part) for part in parts]


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise UsageError(f"greedy is {text!r}; allowed: true, false")
    return text == "true"
