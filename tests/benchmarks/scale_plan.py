"""How far does it scale? An analytical model with inputs measured here, for clusters not at hand.

An iteration of W workers and M learners, each worker acting n steps between two updates:

- acting: n · a, a seconds of a core per step, in every worker at once;
- intake of a learner: n W/M steps of b bytes through its network and out of its object store, and
  W/M calls of Ray's control plane, all in its driver;
- broadcast: the weights once to every machine of a learner's workers, 32 to a machine, out of its
  network;
- learning: n W/M steps at l seconds each, and for each of its updates an all-reduce of gradients.

Synchronous runs take the sum of acting and the rest; asynchronous ones the longer of the two. What
takes longest is what saturates first. Networks are assumed, not measured: 1.25 GB/s (10 Gb/s) and
0.2 ms per message.
"""

import math
from typing import NamedTuple

WORKERS = (1, 4, 16, 64, 256, 1024, 4096)
LEARNERS = (1, 4, 16, 64)
NETWORK, LATENCY, PER_MACHINE = 1.25e9, 2e-4, 32


class Costs(NamedTuple):
    """What was measured on this machine."""

    act: float
    """Environment and policy, per step, on one core [s]."""
    learn: float
    """All epochs, per step, on one learner [s]."""
    steps: int
    """Steps of one worker between two updates, n."""
    updates: int
    """Optimiser steps per iteration."""
    bytes_per_step: float
    """In the object store."""
    take: float
    """Driver time per byte that comes in [s]."""
    call: float
    """Driver time per call of a worker: sending, waiting, replying [s]."""
    weights: int
    """Bytes of the weights."""
    put: float
    """Time to put them into the object store [s]."""


class Estimate(NamedTuple):
    """One cell of the plan."""

    synchronous: float
    """Training steps per second."""
    asynchronous: float
    """Training steps per second."""
    limit: str
    """What takes longest in an asynchronous run."""


def estimate(costs: Costs, workers: int, learners: int) -> Estimate:
    """Estimate the throughput of W workers and M learners."""
    mine = costs.steps * workers / learners  # steps that a learner takes in
    machines = math.ceil(workers / PER_MACHINE)
    parts = {
        "acting": costs.steps * costs.act,
        "network": mine * costs.bytes_per_step / NETWORK if machines > 1 else 0.0,
        "intake": mine * costs.bytes_per_step * costs.take,
        "control": workers / learners * costs.call,
        "broadcast": costs.put
        + (costs.weights * max(machines / learners, 1) / NETWORK if machines > 1 else 0.0),
        "learning": mine * costs.learn,
        "all-reduce": 0.0
        if learners == 1
        else costs.updates
        * (2 * costs.weights * (learners - 1) / learners / NETWORK + LATENCY * math.log2(learners)),
    }
    # One process: taking in, sending out, and learning follow each other; its network runs beside.
    driver = sum(parts[n] for n in ("intake", "control", "broadcast", "learning", "all-reduce"))
    rest = max(driver, parts["network"])
    total = costs.steps * workers
    limit = max(parts, key=lambda name: parts[name])
    return Estimate(total / (parts["acting"] + rest), total / max(parts["acting"], rest), limit)


def plan(costs: Costs) -> str:
    """Lay the plan out as a Markdown table: asynchronous steps/s, and what saturates first."""
    header = ["workers", *(f"{m} learner{'s' if m > 1 else ''}" for m in LEARNERS)]
    lines = [header, ["---"] * len(header)]
    for workers in WORKERS:
        cells = [f"{workers:,}"]
        for learners in LEARNERS:
            if learners > workers:
                cells.append("–")
                continue
            found = estimate(costs, workers, learners)
            cells.append(f"{found.asynchronous:,.0f} ({found.limit})")
        lines.append(cells)
    inputs = (
        f"measured: {1e6 * costs.act:.0f} us to act and {1e6 * costs.learn:.0f} us to learn per "
        f"step, {costs.bytes_per_step:.0f} bytes per step, {1e9 * costs.take:.2f} ns per byte "
        f"taken in, {1e3 * costs.call:.2f} ms per call, weights of {costs.weights:,} bytes put in "
        f"{1e3 * costs.put:.2f} ms; {costs.steps:,} steps per worker and update; assumed: "
        f"{NETWORK / 1e9:g} GB/s, {1e3 * LATENCY:g} ms per message, {PER_MACHINE} workers per "
        "machine"
    )
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", inputs])
