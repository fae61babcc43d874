"""Does the control plane hold? Many workers with tiny environments, for as long as you like.

`python tests/benchmarks/ray_soak.py --workers 64 --minutes 30` trains, kills a worker now and then,
and prints a line a minute: steps, steps/s, resident memory of this process, workers replaced. It
fails if a step was lost or counted twice (all episodes have one length: it is known at which steps
they end, whoever was killed meanwhile), or if memory still grew in the second half.
"""

import argparse
import os
import random
import signal
import sys
import time
from functools import partial

import ray
import torch
from measure import resident

from engram.agents.cluster import RaySettings, joined
from engram.agents.ppo import PPOSettings
from engram.agents.training import Training, build_policy
from engram.agents.workers import Workers
from engram.envs.chain import ChainBit
from engram.envs.vector import Stream
from engram.memory.sequence import GRU
from engram.policies import ActorCritic

ENVS, GROWTH, EPISODE = 4, 1.02, 7
SETTINGS = PPOSettings(rollout=16, chunk=16, epochs=1, minibatches=1)


def make(seed: int, number: int) -> tuple[Stream, ActorCritic]:
    """Build a worker's environments and policy."""
    env = ChainBit(ENVS, length=EPISODE - 1)
    spaces = env.single_observation_space, env.single_action_space
    return Stream(env), build_policy(seed, lambda: ActorCritic(*spaces, GRU, width=16))


def soak(workers: int, minutes: float, *, kill_every: float, asynchronous: bool) -> bool:
    """Train for some minutes; return whether all steps were counted and memory stayed.

    Args:
        workers: How many.
        minutes: How long.
        kill_every: Minutes between two killings of a worker.
        asynchronous: Whether workers act while the learner learns.
    """
    settings = RaySettings(
        workers=workers,
        asynchronous=asynchronous,
        cpus_per_worker=0.9 * (os.cpu_count() or 1) / workers,
        object_store_memory=500 * 2**20,
        timeout=900.0,
    )
    began = time.monotonic()
    with joined(settings):
        policy = make(0, 0)[1]
        acting = Workers(partial(make, 0), policy, settings, seed=0)
        training = Training(acting, policy, SETTINGS, seed=0, budget=10**12)
        print(f"{workers} workers started in {time.monotonic() - began:.0f} s", flush=True)
        began = last = killed = time.monotonic()
        memory: list[float] = []
        iterations = wrong = 0
        while (now := time.monotonic()) - began < 60 * minutes:
            ended = training.iterate()["episodes"]
            before = iterations * SETTINGS.rollout
            iterations += 1
            due = iterations * SETTINGS.rollout // EPISODE - before // EPISODE
            wrong += ended != due * ENVS * workers
            if now - last >= min(60.0, 6 * minutes):
                last = now
                memory.append(resident())
                print(
                    f"{(now - began) / 60:5.1f} min  {training.steps:>12,} steps  "
                    f"{training.steps / (now - began):>9,.0f} steps/s  "
                    f"{memory[-1]:.0f} MB  {acting.replaced} replaced",
                    flush=True,
                )
            if now - killed >= 60 * kill_every:
                killed = now
                victim = random.choice(acting._actors)
                os.kill(ray.get(victim.process.remote()), signal.SIGKILL)
        expected = iterations * workers * ENVS * SETTINGS.rollout
        acting.close()
    half = memory[len(memory) // 2 :]
    growth = max(half) / half[0]
    print(f"steps counted: {training.steps:,} of {expected:,}")
    print(f"rollouts in which episodes ended at other steps than they should: {wrong}")
    print(f"driver memory in the second half: {half[0]:.0f} MB, at most {growth:.3f} times that")
    print(f"workers replaced: {acting.replaced}")
    return training.steps == expected and not wrong and growth <= GROWTH


def main() -> None:
    """Run, and exit with 1 if it did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kill-every", type=float, default=5.0, help="minutes (default 5)")
    parser.add_argument("--asynchronous", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    held = soak(
        arguments.workers,
        arguments.minutes,
        kill_every=arguments.kill_every,
        asynchronous=arguments.asynchronous,
    )
    print("held" if held else "DID NOT HOLD")
    sys.exit(not held)


if __name__ == "__main__":
    main()
