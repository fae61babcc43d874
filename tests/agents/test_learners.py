"""Two learners on split batches learn what one learns on the joined batch."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engram.agents.learners import Alone
from engram.agents.parcel import together
from engram.agents.ppo import PPO, Batch, PPOSettings
from engram.agents.rollout import Collector, Rollout
from engram.agents.seeds import derive
from engram.agents.training import Training, build_policy
from engram.envs.tmaze import TMaze
from engram.envs.vector import Stream
from engram.memory import state as states
from engram.memory.sequence import GRU
from engram.policies import ActorCritic

ENVS, ITERATIONS, SEED = 4, 3, 5

LEARNER = """
import sys
import torch
from pathlib import Path
from engram.agents.learners import Group
from engram.agents.ppo import PPOSettings
from engram.agents.rollout import Collector
from engram.agents.seeds import derive
from engram.agents.training import Training, build_policy
from engram.envs.tmaze import TMaze
from engram.envs.vector import Stream
from engram.memory.sequence import GRU
from engram.policies import ActorCritic

rank, folder, minibatches = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
)
world = TMaze(4, length=3, time_limit=5)
policy = build_policy(5, lambda: ActorCritic(
    world.single_observation_space, world.single_action_space, GRU, width=8, normalize=True))
settings = PPOSettings(rollout=20, chunk=10, epochs=3, minibatches=minibatches)
acting = Collector(Stream(world), policy, seed=derive(5, f"learner {rank}"))
training = Training(acting, policy, settings, seed=5, budget=10**6, learners=Group())
for _ in range(3):
    report = training.iterate()
training.save(Path(folder, "checkpoint"), {})
report = {k: v for k, v in report.items() if "second" not in k}
torch.save((policy.state_dict(), report), f"{folder}/learner{rank}")
again = Training(acting, policy, settings, seed=5, budget=10**6, learners=training.learners)
again.load(Path(folder, "checkpoint"))
assert again.steps == training.steps
torch.distributed.destroy_process_group()
"""


class Joined:
    """The learners' collectors, in one process."""

    def __init__(self, policy: ActorCritic):
        self.seconds: dict[str, float] = {}
        self.facts: dict[str, float] = {}
        self.collectors = [
            Collector(
                Stream(TMaze(ENVS, length=3, time_limit=5)),
                policy,
                seed=derive(SEED, f"learner {rank}"),
            )
            for rank in range(2)
        ]

    def collect(self, steps: int, *, chunk: int) -> Rollout:
        return together([c.collect(steps, chunk=chunk) for c in self.collectors])

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load(self, tensors: dict[str, Tensor], *, steps: int, source: Path) -> None: ...

    def close(self) -> None: ...


class SameShares(PPO):
    """Takes as many chunks of each learner's environments into every minibatch as learners do."""

    def _minibatches(self, batch: Batch) -> Iterator[Batch]:
        count = batch.log_prob.shape[1] // 2
        order = torch.randperm(count, generator=self.generator)
        for rows in order.tensor_split(self.settings.minibatches):
            cut, env = rows // ENVS, rows % ENVS
            both = torch.cat([cut * 2 * ENVS + env, cut * 2 * ENVS + ENVS + env])
            chosen = states.tree_map(lambda x, r=both: x.index_select(1, r), tuple(batch[:-1]))
            yield Batch._make([*chosen, states.take(batch.state, both)])


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("minibatches", [1, 2])
def test_two_learners_equal_one_on_the_joined_batch(minibatches: int, tmp_path: Path) -> None:
    learners = [
        subprocess.Popen(
            [sys.executable, "-c", LEARNER, str(rank), str(tmp_path), str(minibatches)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for learner in learners:
        _, errors = learner.communicate(timeout=120)
        assert learner.returncode == 0, errors
    (first, told), (second, other) = (
        torch.load(tmp_path / f"learner{rank}", weights_only=True) for rank in range(2)
    )
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert told == other

    world = TMaze(ENVS, length=3, time_limit=5)
    policy = build_policy(
        SEED,
        lambda: ActorCritic(
            world.single_observation_space,
            world.single_action_space,
            GRU,
            width=8,
            normalize=True,
        ),
    )
    settings = PPOSettings(rollout=20, chunk=10, epochs=3, minibatches=minibatches)
    alone = Training(Joined(policy), policy, settings, seed=SEED, budget=10**6)
    alone.learner = SameShares(policy, settings, seed=SEED)
    report: dict[str, Any] = {}
    for _ in range(ITERATIONS):
        report = alone.iterate()
    for name, value in policy.state_dict().items():
        if not name.endswith("count"):  # each learner counts its own vectors
            torch.testing.assert_close(first[name], value, rtol=0, atol=1e-5)
    for name in ("steps", "episodes"):
        assert told[name] == report[name]
    for name in ("score", "policy_loss", "value_loss", "gradient"):
        assert told[name] == pytest.approx(report[name], abs=1e-5)


def test_a_learner_alone_waits_for_nobody() -> None:
    alone = Alone()
    values = torch.tensor([1.0, 2.0])
    assert alone.mean(values) is values
    assert alone.gather("state") == ["state"] and alone.spread(3) == 3
    alone.average([values])
    assert values.tolist() == [1.0, 2.0]
