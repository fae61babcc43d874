"""Training through Ray against one process, and a plan for clusters that are not at hand.

masked_mujoco (Hopper, 64 worlds, a step of all of which costs some ten milliseconds) and chain_bit,
whose steps cost nothing, so that only overhead is left. All sides learn with the command line's
defaults: rollout 128, chunk 64, 8 minibatches, 4 epochs.
"""

import importlib.util
import statistics
import time
from functools import partial
from typing import Any

import torch
from measure import Limit, Row, alternate, compared, not_run, once
from scale_plan import Costs, plan

from engram.agents.cluster import RaySettings, joined
from engram.agents.parcel import nbytes, pack
from engram.agents.ppo import PPOSettings
from engram.agents.rollout import Collector
from engram.agents.training import Training, build_policy
from engram.agents.workers import Workers
from engram.envs.ballet import Ballet
from engram.envs.chain import ChainBit
from engram.envs.masked_mujoco import MaskedMujoco
from engram.envs.vector import Stream
from engram.memory import state as states
from engram.memory.sequence import GRU
from engram.policies import ActorCritic

SETTINGS = PPOSettings(rollout=128, chunk=64, epochs=4, minibatches=8)
ALONE, TWO, BYTES = Limit("≥", 0.85), Limit("≥", 1.5), Limit("≤", 1.2)
MUJOCO, CHAIN = 64, 256
"""Worlds of each environment."""


def hopper(envs: int, number: int) -> tuple[Stream, ActorCritic]:
    """Build a share of the environment whose steps cost something."""
    return acting(MaskedMujoco(envs, task="Hopper"))


def chain(envs: int, number: int) -> tuple[Stream, ActorCritic]:
    """Build a share of the environment whose steps cost next to nothing."""
    return acting(ChainBit(envs, length=16))


def acting(env: Any) -> tuple[Stream, ActorCritic]:
    """Return an environment and its policy."""
    spaces = env.single_observation_space, env.single_action_space
    return Stream(env), build_policy(0, lambda: ActorCritic(*spaces, GRU, width=64))


def alone(make: Any, envs: int) -> Training:
    """Return training in one process."""
    stream, policy = make(envs, 0)
    return Training(stream, policy, SETTINGS, seed=0, budget=10**9)


def spread(make: Any, envs: int, workers: int, **more: Any) -> Training:
    """Return training with workers."""
    settings = RaySettings(workers=workers, cpus_per_worker=0.25, **more)
    policy = make(1, 0)[1]
    workers_here = Workers(partial(make, envs // workers), policy, settings, seed=0)
    return Training(workers_here, policy, SETTINGS, seed=0, budget=10**9)


def ratios(name: str, make: Any, envs: int, rounds: int) -> tuple[list[Row], Training]:
    """Compare one process with one worker, two, and two that do not wait for the learner."""
    one, single, double = alone(make, envs), spread(make, envs, 1), spread(make, envs, 2)
    sides = [one.iterate, single.iterate, double.iterate]
    for side in sides * 2:
        side()
    peer, *found = alternate(*sides, rounds=rounds)
    double.collector.close()
    restless = spread(make, envs, 2, asynchronous=True)
    # Its workers act all the time: nothing else may be measured meanwhile.
    timed = [once(restless.iterate).wall for _ in range(3 + 3 * rounds)][3:]
    restless.collector.close()
    walls = [*(cost.wall for cost in found), statistics.median(timed)]
    steps = SETTINGS.rollout * envs
    rows = []
    limits = (ALONE, TWO, TWO) if name == "Hopper" else (None, None, None)
    sides_told = ("one worker", "two workers", "two workers, asynchronous")
    for told, wall, limit in zip(sides_told, walls, limits, strict=True):
        what = f"{name}, {envs} worlds, {told} [training steps/s]"
        numbers = f"{steps / wall:,.0f}", f"one process {steps / peer.wall:,.0f}"
        ratio = peer.wall / wall
        if limit is None:
            rows.append(Row(what, *numbers, ratio, None, "", None))
        else:
            rows.append(compared(what, *numbers, (ratio, None), limit))
    return rows, single


def bytes_row(name: str, env: Any, *, envs: int) -> Row:
    """Compare the bytes of a rollout in the object store with those of its observations."""
    stream, policy = acting(env)
    collector = Collector(stream, policy, seed=0)
    collector.collect(SETTINGS.rollout, chunk=SETTINGS.chunk)
    rollout = collector.collect(SETTINGS.rollout, chunk=SETTINGS.chunk)
    sizes = nbytes(pack(rollout, collector.tensors(), collector.seconds, with_memory=False))
    steps = SETTINGS.rollout * envs
    raw = sum(x.numel() * x.element_size() for _, x in states.leaves(rollout.inputs.observation))
    told = (f"{name}: object store [bytes/step]", f"{sum(sizes.values()) / steps:,.1f}")
    return compared(
        *told, f"observations {raw / steps:,.1f}", (sum(sizes.values()) / raw, None), BYTES
    )


def measured_costs(training: Training) -> Costs:
    """Measure what the plan needs, with one worker on Hopper."""
    import ray

    reports = [training.iterate() for _ in range(5)]
    steps = SETTINGS.rollout * MUJOCO

    def median(name: str) -> float:
        return statistics.median(report[name] for report in reports)

    collector = training.collector
    assert isinstance(collector, Workers)
    sizes = sum(v for k, v in collector.facts.items() if k.endswith("_bytes_per_step"))
    weights = sum(v.numel() * v.element_size() for v in training.policy.state_dict().values())
    actor = collector._actors[0]
    calls, puts = 200, []
    began = time.process_time()
    for _ in range(calls):
        ray.get(actor.process.remote())
    call = (time.process_time() - began) / calls
    for _ in range(20):
        left = time.perf_counter()
        collector._put_weights()
        puts.append(time.perf_counter() - left)
    return Costs(
        act=(median("environment_seconds") + median("acting_seconds")) / steps,
        learn=median("learning_seconds") / steps,
        steps=steps,
        updates=SETTINGS.epochs * SETTINGS.minibatches,
        bytes_per_step=sizes,
        take=max(median("transfer_seconds") - call - statistics.median(puts), 0) / (steps * sizes),
        call=call,
        weights=weights,
        put=statistics.median(puts),
    )


def rows(rounds: int) -> list[Row]:
    """Measure, and print the plan."""
    quantity = f"Hopper, {MUJOCO} worlds [training steps/s]"
    for package, extra in (("ray", "ray"), ("mujoco", "mujoco")):
        if importlib.util.find_spec(package) is None:
            why = f"{package} is missing: pip install -e '.[{extra}]' -c constraints.txt"
            return [not_run(quantity, "", why, str(ALONE))]
    torch.set_num_threads(1)
    with joined(RaySettings(object_store_memory=500 * 2**20)):
        found, training = ratios("Hopper", hopper, MUJOCO, rounds)
        print(plan(measured_costs(training)) + "\n")
        training.collector.close()
        more, training = ratios("chain_bit", chain, CHAIN, rounds)
        training.collector.close()
    found += more
    found.append(bytes_row("Ballet, pixels", Ballet(32, dances=2, pixels=True), envs=32))
    found.append(bytes_row("Ballet, symbols", Ballet(32, dances=2), envs=32))
    found.append(bytes_row("HalfCheetah", MaskedMujoco(16, task="HalfCheetah"), envs=16))
    found.append(bytes_row("Hopper", MaskedMujoco(16, task="Hopper"), envs=16))
    return found
