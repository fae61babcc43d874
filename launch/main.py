"""The command line: `engram <command> key=value`."""

import logging
import sys

from rich.console import Console

from engram.kernels.errors import EngramError

USAGE = """usage: engram <command> key=value ...

commands
  train    train one memory with several seeds, evaluate, report
  compare  the same for several memories: one table, one figure
  sweep    search any keys: memory=gru,hcam agent.learning_rate=tag(log,interval(1e-4,1e-2))
  eval     evaluate trained runs on fresh seeds: engram eval out=<folder> [gaps=[5,60]]
  info     memories, environments and devices to choose from
  demos    record demonstrations: engram demos task=shell_game out=FOLDER
  clone    clone demonstrations with memories: task=[..] memory=[..], or study=NAME
  film     an episode as MP4 or GIF: engram film task=put_back out=FILE [run=FOLDER]
  map      voxel map of a recording: engram map <folder> voxel_size=0.05 max_range=5
           --view shows it in a Rerun viewer while it is made, view=FILE.rrd records that

keys of train, compare and sweep (all others: engram info, configs/train.yaml)
  env=NAME            the task; its settings are env.<key>=<value>
  memory=NAME         the memory; for compare a list: memory=[none,gru,hcam,memo]
  budget=N            environment steps per seed
  seeds=N | [0,1,2]   how many, or which
  device=auto         auto, cpu, cuda, cuda:N
  out=FOLDER          where results go
  resume=true         continue what the folder holds

keys of clone (all others: engram info, configs/clone.yaml)
  task=NAME | [..]    what is to be done; its settings are task.settings.<key>=<value>
  memory=NAME | [..]  the memory between perception and action
  study=NAME          tasks, memories and settings of a whole table
  out, seeds, device, resume as above

examples
  engram compare preset=demo
  engram train memory=hcam env=ballet budget=2_000_000
  engram train memory=gru env=masked_mujoco ray.workers=8 ray.address=auto
"""
COMMANDS = ("train", "compare", "sweep", "eval", "info", "map", "demos", "clone", "film")


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command and its settings; those of the process unless given.

    Returns:
        The exit status: 0; 2 after a user's mistake or a file that cannot be read or written,
        which one line on stderr names; 130 where Ctrl-C came when there was nothing to save.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    command, *rest = arguments
    if any(argument in ("-h", "--help") for argument in rest):
        print(USAGE, end="")
        return 0
    # Tables are cut where a log has no width; progress goes to stderr, results to stdout.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    try:
        return _dispatch(command, rest, console)
    except (EngramError, OSError) as error:
        print(f"engram: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("engram: interrupted", file=sys.stderr)
        return 130


def _dispatch(command: str, rest: list[str], console: Console) -> int:
    from engram.launch.config import UsageError, unknown

    if command not in COMMANDS:
        raise unknown("command", command, list(COMMANDS))
    if command == "info":
        from engram.launch.info import info

        if rest:
            raise UsageError(f"info takes no arguments, got {' '.join(rest)}")
        return info(console)
    if command == "eval":
        from engram.launch.evaluate import evaluate_runs

        return evaluate_runs(rest, console)
    if command == "sweep":
        from engram.launch.sweep import sweep

        return sweep(rest, console)
    if command == "demos":
        from engram.launch.demos import demos

        return demos(rest, console)
    if command == "clone":
        from engram.launch.clone import clone

        return clone(rest, console)
    if command == "film":
        from engram.launch.film import film

        return film(rest, console)
    if command == "map":
        from engram.launch.mapping import build_map

        return build_map(rest, console)
    from engram.launch.compare import compare

    return compare(rest, console, several=command == "compare")


if __name__ == "__main__":
    sys.exit(main())
