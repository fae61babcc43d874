"""Evaluates a policy on fresh seeds, every environment for the same number of episodes."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from engram.agents.seeds import derive
from engram.envs.vector import Stream
from engram.memory import state as states
from engram.policies import ActorCritic, Inputs

QUANTILES = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
]  # fmt: skip
"""97.5 % quantile of Student's t for 1, 2, … degrees of freedom."""


class Evaluation(NamedTuple):
    """What fresh episodes showed."""

    score: float
    """Mean return."""
    interval: float
    """Half the 95 % interval of that mean, over episodes."""
    episodes: int
    measurements: dict[str, list[float]]
    """Mean of each measurement at the end of an episode; one number or several."""
    memory_bytes: int
    """Bytes of memory state per environment."""


@torch.no_grad()
def evaluate(
    policy: ActorCritic,
    stream: Stream,
    *,
    episodes: int,
    greedy: bool,
    seed: int,
    stopping: Callable[[], bool],
) -> Evaluation | None:
    """Run at least `episodes` episodes, as many in every environment.

    Counting whichever episodes end first would favour short ones.

    Args:
        policy: Who acts; nothing that its memory draws is random here.
        stream: Worlds that training never saw.
        episodes: How many, rounded up to a multiple of the environments.
        greedy: Whether to take the likeliest action instead of drawing one.
        seed: Of worlds and actions.
        stopping: Asked after every step; once true, nothing is returned.
    """
    batch = stream.env.num_envs
    wanted = -(-episodes // batch)
    generator = torch.Generator(stream.device).manual_seed(derive(seed, "actions"))
    observation, start = stream.reset(seed=derive(seed, "worlds"))
    state = policy.initial_state(batch)
    size = states.nbytes(state) // batch
    zeros = torch.zeros(batch, device=stream.device)
    inputs = Inputs(observation, policy.no_action(batch), zeros, start)
    score, done_count = zeros.clone(), torch.zeros_like(start, dtype=torch.int64)
    scores: list[float] = []
    measured: dict[str, list[torch.Tensor]] = {}
    while int(done_count.min()) < wanted:
        if stopping():
            return None
        output, state = policy.step(inputs, state)
        action = output.policy.mode() if greedy else output.policy.sample(generator)
        step = stream.step(policy.head.to_env(action))
        done = step.terminated | step.truncated
        score = score + step.reward
        counted = done & (done_count < wanted)
        if bool(counted.any()):
            scores += score[counted].tolist()
            for name, values in step.info.items():
                if isinstance(values, torch.Tensor):
                    measured.setdefault(name, []).append(values[counted])
        done_count = done_count + done.long()
        score = torch.where(done, 0.0, score)
        inputs = Inputs(step.observation, action, step.reward, step.start)
    mean, half = interval(scores)
    means = {name: torch.cat(parts).nanmean(0) for name, parts in measured.items()}
    return Evaluation(
        mean,
        half,
        len(scores),
        {name: means[name].flatten().tolist() for name in means},
        size,
    )


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval, by Student's t.

    The half-width of a single value is infinite: it says nothing about others.
    """
    count = len(values)
    mean = sum(values) / count
    if count == 1:
        return mean, math.inf
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    quantile = QUANTILES[count - 2] if count - 2 < len(QUANTILES) else 1.96
    return mean, quantile * math.sqrt(variance / count)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the evaluation as a dict that JSON can hold: no infinity, no NaN."""

    def finite(value: Any) -> Any:
        if isinstance(value, list):
            return [finite(v) for v in value]
        return value if not isinstance(value, float) or math.isfinite(value) else None

    plain = evaluation._asdict()
    plain["measurements"] = {k: finite(v) for k, v in evaluation.measurements.items()}
    return {name: finite(value) for name, value in plain.items()}
