"""Training on symbolic Ballet, entirely on a GPU: training steps per second.

`python tests/benchmarks/ballet_training.py --device cpu --envs 4` runs the same code, small.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import Limit, Row, markdown, not_run

from engram.agents.ppo import PPOSettings
from engram.agents.training import Training, build_policy
from engram.envs.ballet import Ballet
from engram.envs.vector import Stream
from engram.memory.sequence import GRU, HCAM
from engram.memory.sequence.base import SequenceMemory
from engram.policies import ActorCritic

ENVS = 4096
WIDTH = 128
WARM_UP = 2
"""Iterations before the clock counts: the first ones choose kernels and fill the allocator."""

SETTINGS = PPOSettings(rollout=128, chunk=64, epochs=4, minibatches=16)
MEMORIES: dict[str, tuple[Callable[[int], SequenceMemory[Any]], float, Limit]] = {
    # The number is the weight of the reconstruction loss: HCAM's writes are detached, and without
    # it nothing would learn what to store.
    "GRU": (GRU, 0.0, Limit("≥", 300_000)),
    # 256 inputs are remembered: watching two dances takes 62 steps, eight take 248.
    "HCAM": (partial(HCAM, chunk=32, capacity=8, top_k=4), 1.0, Limit("≥", 60_000)),
}


def rate(
    memory: Callable[[int], SequenceMemory[Any]],
    *,
    reconstruct: float,
    device: torch.device,
    envs: int,
    rounds: int,
) -> float:
    """Environment steps per second that are collected and learnt from; the median of rounds."""
    stream = Stream(Ballet(envs, dances=2, device=device))
    spaces = stream.env.single_observation_space, stream.env.single_action_space
    weights = {"reconstruct": reconstruct}
    policy = build_policy(
        0, lambda: ActorCritic(*spaces, memory, width=WIDTH, auxiliary=weights)
    ).to(device)
    training = Training(stream, policy, SETTINGS, seed=0, budget=10**12)
    rates = []
    for _ in range(WARM_UP + rounds):
        # The report holds losses as numbers, so the device has finished when it is there.
        rates.append(training.iterate()["steps_per_second"])
    return statistics.median(rates[WARM_UP:])


def rows(rounds: int, *, device: str = "cuda", envs: int = ENVS) -> list[Row]:
    """Measure every memory, or say that there is no GPU."""
    table = []
    for name, (memory, reconstruct, limit) in MEMORIES.items():
        quantity = f"Ballet + {name}, width {WIDTH}, {envs:,} worlds [training steps/s]"
        if device == "cuda" and not torch.cuda.is_available():
            table.append(not_run(quantity, "no CUDA device: not run", "", str(limit)))
            continue
        where = torch.device(device)
        value = rate(memory, reconstruct=reconstruct, device=where, envs=envs, rounds=rounds)
        host = where.type == "cpu"
        model = "the CPU, no target" if host else torch.cuda.get_device_name(where)
        met = None if host else limit.holds(value)
        table.append(Row(quantity, f"{value:,.0f}", f"on {model}", None, None, str(limit), met))
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--envs", type=int, default=ENVS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    print(markdown(rows(arguments.rounds, device=arguments.device, envs=arguments.envs)))
