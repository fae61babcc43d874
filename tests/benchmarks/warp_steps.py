"""Steps per second of MuJoCo tasks in MuJoCo-Warp, against Gymnasium's worlds one by one.

On a CPU both run on one core; a GPU is what MuJoCo-Warp is for. Needs engram[warp,mujoco].
`python tests/benchmarks/warp_steps.py --device cuda --tasks Hopper Ant --worlds 8192`.
"""

import argparse
import importlib.util
import statistics
import time
from typing import Any

import torch
from measure import Row, markdown, not_run

from engram.envs import MaskedMujoco, WarpMujoco

TASKS = ("InvertedPendulum", "Hopper", "HalfCheetah")
WORLDS = 256
GPU_WORLDS = 4096
PEER_WORLDS = 16


def rate(env: Any, *, seconds: float) -> float:
    """Environment steps per second under random actions, restarts included."""
    shape = env.action_space.shape
    actions = 2 * torch.rand(16, *shape, device=env.device) - 1
    env.reset(seed=0)
    for action in actions:
        env.step(action)
    synchronize(env.device)
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for action in actions:
            env.step(action)
        synchronize(env.device)
        steps += len(actions) * env.num_envs
    return steps / (time.perf_counter() - begin)


def synchronize(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_cpu(task: str, rounds: int, worlds: int) -> Row:
    """Compare with Gymnasium in the same process, in turns."""
    ours, theirs = WarpMujoco(worlds, task=task), MaskedMujoco(PEER_WORLDS, task=task)
    pairs = [(rate(ours, seconds=1.0), rate(theirs, seconds=1.0)) for _ in range(rounds)]
    mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    quantity = f"{task}, MuJoCo-Warp on the CPU, {worlds:,} worlds [environment steps/s]"
    peer = f"{other:,.0f}, Gymnasium, {PEER_WORLDS} worlds"
    return Row(quantity, f"{mine:,.0f}", peer, mine / other, None, "", None)


def on_gpu(task: str, rounds: int, worlds: int) -> Row:
    """Measure on a GPU, or say that there is none."""
    quantity = f"{task}, MuJoCo-Warp on a GPU, {worlds:,} worlds [environment steps/s]"
    if not torch.cuda.is_available():
        return not_run(quantity, "no CUDA device: not run", "", "")
    env = WarpMujoco(worlds, task=task, device="cuda")
    value = statistics.median(rate(env, seconds=1.0) for _ in range(rounds))
    peer = f"on {torch.cuda.get_device_name()}"
    return Row(quantity, f"{value:,.0f}", peer, None, None, "", None)


def rows(
    rounds: int, *, tasks: tuple[str, ...] = TASKS, worlds: int = WORLDS, gpu: int = GPU_WORLDS
) -> list[Row]:
    """Measure every task on the CPU, and on a GPU."""
    for package in ("mujoco_warp", "imageio"):
        if importlib.util.find_spec(package) is None:
            return [not_run("MuJoCo-Warp", "not run", f"{package} is not installed", "")]
    table = [on_cpu(task, rounds, worlds) for task in tasks]
    return [*table, *(on_gpu(task, rounds, gpu) for task in tasks)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--worlds", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure, usual = (on_cpu, WORLDS) if arguments.device == "cpu" else (on_gpu, GPU_WORLDS)
    count = arguments.worlds or usual
    print(markdown([measure(task, arguments.rounds, count) for task in arguments.tasks]))
