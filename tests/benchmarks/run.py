"""Run the benchmarks and print one table: `python tests/benchmarks/run.py [name ...]`."""

import argparse
import importlib
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure import markdown, once

NAMES = [
    "ppo_lstm",
    "rllib_lstm",
    "hcam_step",
    "bank_step",
    "policy_step",
    "sequence_forward",
    "ballet_steps",
    "ballet_training",
    "warp_steps",
    "ray_scale",
    "voxels",
    "voxels_real",
    "voxels_cuda",
    "demonstrations",
    "manipulation_steps",
]


def machine() -> str:
    """Name the processor, its cores and the memory."""
    model = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        lines = facts.read_text().splitlines()
        model = next((x.split(": ")[1] for x in lines if x.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB"


def commit() -> str:
    """Name the commit that is measured."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown commit"


def main() -> None:
    """Run what was named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=3, help="the median of how many (default 3)")
    parser.add_argument(
        "--threads", type=int, default=1, help="of both sides (default 1, which suits small layers)"
    )
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")
    print(f"{machine()}; {arguments.threads} threads; torch {torch.__version__}; {commit()}\n")
    table = []

    def measure(name: str) -> None:
        table.extend(importlib.import_module(name).rows(arguments.rounds))

    began = time.perf_counter()
    for name in arguments.names or NAMES:
        torch.manual_seed(0)
        cost = once(lambda name=name: measure(name))
        print(f"{name}: {cost.wall:.0f} s", file=sys.stderr, flush=True)
    print(markdown(table))
    print(f"\n{time.perf_counter() - began:.0f} s; ratios are of medians of rounds in this run.")


if __name__ == "__main__":
    main()
