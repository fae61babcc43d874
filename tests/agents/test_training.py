"""Training runs: interrupted and resumed, they go on as if nothing had happened."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engram.agents import checkpoint
from engram.agents.ppo import PPOSettings
from engram.agents.training import Training, build_policy
from engram.envs.adapter import GymnasiumEnv
from engram.envs.chain import ChainBit
from engram.envs.repeat import RepeatFirst
from engram.envs.street import Street
from engram.envs.tmaze import TMaze
from engram.envs.vector import Stream
from engram.kernels.errors import DataError, InvalidValueError
from engram.memory import state as states
from engram.memory.sequence import GRU, HCAM, Memo, SequenceMemory
from engram.policies import ActorCritic

MEMORIES: dict[str, Callable[[int], SequenceMemory[Any]]] = {
    "gru": GRU,
    "hcam": lambda width: HCAM(width, chunk=3, capacity=3, top_k=2, heads=2),
    "memo": lambda width: Memo(width, heads=2, segment=5, summary=2, capacity=2, jitter=0.5),
}
ENVS: dict[str, Callable[..., Any]] = {
    "repeat_first": RepeatFirst,
    "tmaze": lambda n, seed=0: TMaze(n, length=3, time_limit=5, seed=seed),
    "street": lambda n, seed=0: Street(n, trial_steps=15, pool=4, seed=seed),
}
SETTINGS = PPOSettings(
    rollout=20, chunk=10, epochs=2, minibatches=2, final_learning_rate=1e-4, refresh=True
)


def build(
    env: Any = "tmaze", memory: str = "gru", *, envs: int = 4, width: int = 8, seed: int = 5
) -> Training:
    world = ENVS[env](envs) if isinstance(env, str) else env
    policy = build_policy(
        seed,
        lambda: ActorCritic(
            world.single_observation_space,
            world.single_action_space,
            MEMORIES[memory],
            width=width,
            normalize=True,
            auxiliary={"recall": 0.1, "predict": 0.1},
        ),
    )
    return Training(Stream(world), policy, SETTINGS, seed=seed, budget=400)


def everything(training: Training) -> dict[str, Tensor]:
    """All that decides how a run goes on, copied."""
    cursor = training.collector.cursor  # type: ignore[attr-defined]
    kept = {**training.policy.state_dict(), **states.flatten(cursor.state)}
    for index, moments in training.learner.optimizer.state_dict()["state"].items():
        kept |= {f"{index}.{name}": moment for name, moment in moments.items()}
    kept |= {"score": cursor.score, "start": cursor.inputs.start, "reward": cursor.inputs.reward}
    kept["act"] = training.collector.generator.get_state()
    kept["learn"] = training.learner.generator.get_state()
    kept["steps"] = torch.tensor(training.steps)
    env = training.collector.stream.env  # type: ignore[attr-defined]
    if hasattr(env, "save"):
        kept |= env.save()
    return {name: tensor.detach().clone() for name, tensor in kept.items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names under which two runs differ in any bit; NaN equals NaN."""
    return sorted(
        name
        for name in a.keys() | b.keys()
        if name not in a or name not in b
        or not torch.equal(a[name].nan_to_num(7e7), b[name].nan_to_num(7e7))
    )  # fmt: skip


def report(training: Training) -> dict[str, float]:
    """One iteration's report without what the clock says; NaN as a word, to compare."""
    told = training.iterate()
    told = {k: v for k, v in told.items() if "second" not in k}
    return {k: "nan" if math.isnan(v) else v for k, v in told.items()}  # type: ignore[misc]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("env", ENVS)
def test_a_resumed_run_agrees_with_an_uninterrupted_one_bit_for_bit(
    env: str, memory: str, tmp_path: Path
) -> None:
    through = build(env, memory)
    for _ in range(2):
        through.iterate()
    through.save(tmp_path / "run", {"any": "fact"})
    at_save = everything(through)
    expected = [report(through) for _ in range(2)]

    torch.manual_seed(999)  # nothing may hang on the global generator
    resumed = build(env, memory)
    resumed.load(tmp_path / "run")
    assert differing(everything(resumed), at_save) == []
    assert [report(resumed) for _ in range(2)] == expected
    assert differing(everything(resumed), everything(through)) == []


def test_saving_changes_nothing(tmp_path: Path) -> None:
    saver, other = build(memory="hcam"), build(memory="hcam")
    for _ in range(2):
        saver.iterate()
        saver.save(tmp_path / "run", {})
        other.iterate()
    assert differing(everything(saver), everything(other)) == []


def test_a_run_can_be_saved_before_its_first_step(tmp_path: Path) -> None:
    through, resumed = build(), build(seed=6)
    through.save(tmp_path / "run", {})
    resumed.load(tmp_path / "run")
    assert report(resumed) == report(through)


def test_a_run_can_go_back_to_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    training = build()
    training.save(tmp_path / "start", {})
    first = report(training)
    training.load(tmp_path / "start")
    assert report(training) == first


def test_a_run_is_a_function_of_its_seed() -> None:
    reports = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(reports))
        reports.append([report(build(seed=seed)) for _ in range(1)])
    assert reports[0] == reports[1] != reports[2]


def test_facts_travel_with_the_file(tmp_path: Path) -> None:
    training = build()
    training.iterate()
    training.save(tmp_path / "run", {"config": {"env": "tmaze"}})
    facts = checkpoint.read(tmp_path / "run")[1]
    assert facts["config"] == {"env": "tmaze"}
    assert facts["steps"] == 80


def edit(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> None:
    tensors, facts = checkpoint.read(path)
    change(tensors, facts)
    checkpoint.write(path, tensors, facts)


def drop(name: str) -> Callable[[dict[str, Tensor], dict[str, Any]], Any]:
    return lambda tensors, facts: facts.pop(name) if name in facts else tensors.pop(name)


def resize(name: str) -> Callable[[dict[str, Tensor], dict[str, Any]], Any]:
    return lambda tensors, facts: tensors.update({name: tensors[name][:1].clone()})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop("policy.value.weight"), r"value\.weight is missing"),
        (resize("policy.from_action.weight"), r"from_action\.weight is \[1, 4\]"),
        (drop("optimizer.0.exp_avg"), r"optimizer\.0\.exp_avg is missing"),
        (resize("optimizer.0.exp_avg"), r"optimizer\.0\.exp_avg is \[1, 8\]"),
        (drop("random.act"), r"random\.act is missing"),
        (drop("random.learn"), r"random\.learn is missing"),
        (resize("random.act"), r"random\.act is \[1\]"),
        (drop("memory.h"), r"memory\.h is missing"),
        (resize("memory.h"), r"memory\.h is \[1, 8\]; allowed: \[4, 8\]"),
        (drop("cursor.score"), r"cursor\.score is missing"),
        (resize("inputs.observation"), r"inputs\.observation is \[1, 2\]"),
        (drop("env.world.1"), r"world\.1 is missing"),
        (resize("env.world.1"), r"world\.1 is .*\[1\]"),
        (drop("env.generator"), r"env\.generator is missing"),
        (resize("env.generator"), r"env\.generator is \[1\]"),
        (drop("steps"), "steps"),
        (drop("seconds"), "seconds"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_and_nothing_is_loaded(
    change: Any, named: str, tmp_path: Path
) -> None:
    training = build()
    training.iterate()
    training.save(tmp_path / "run", {})
    edit(tmp_path / "run", change)
    other = build(seed=6)
    other.iterate()
    before = everything(other)
    with pytest.raises(DataError, match=named):
        other.load(tmp_path / "run")
    assert differing(everything(other), before) == []


@pytest.mark.parametrize(
    "other",
    [
        lambda: build("repeat_first"),
        lambda: build("street"),
        lambda: build(memory="hcam"),
        lambda: build(width=16),
        lambda: build(envs=5),
    ],
    ids=["env", "street", "memory", "width", "envs"],
)
def test_the_checkpoint_of_another_run_is_refused_and_nothing_is_loaded(
    other: Callable[[], Training], tmp_path: Path
) -> None:
    source = build()
    source.iterate()
    source.save(tmp_path / "run", {})
    training = other()
    before = everything(training)
    with pytest.raises(DataError, match=r"is .*; allowed: "):
        training.load(tmp_path / "run")
    assert differing(everything(training), before) == []


def cartpole() -> GymnasiumEnv:
    return GymnasiumEnv(3, environment="CartPole-v1", seed=0)


def test_an_environment_that_cannot_be_copied_resumes_with_fresh_episodes(tmp_path: Path) -> None:
    through = build(cartpole())
    first = through.collector.cursor.inputs.observation.clone()
    for _ in range(2):
        through.iterate()
    through.save(tmp_path / "run", {})
    resumed = build(cartpole())
    resumed.load(tmp_path / "run")
    cursor = resumed.collector.cursor
    assert cursor.inputs.start.all()
    assert not cursor.score.any()
    assert not cursor.state.h.any()
    assert not torch.equal(cursor.inputs.observation, first), "episodes of the run's beginning"
    ours, theirs = everything(resumed), everything(through)
    assert all(torch.equal(ours[k], theirs[k]) for k in resumed.policy.state_dict())
    assert torch.equal(ours["learn"], theirs["learn"])
    assert resumed.iterate()["steps"] == 3 * 20 * 3


def test_going_back_begins_the_episodes_of_a_simulator_anew(tmp_path: Path) -> None:
    training = build(cartpole())
    training.save(tmp_path / "start", {})
    training.iterate()
    training.load(tmp_path / "start")
    assert training.collector.cursor.inputs.start.all()
    assert (training.collector.cursor.inputs.observation.abs() <= 0.05).all()


def test_a_report_counts_steps_episodes_and_measurements() -> None:
    world = ChainBit(6, length=4)
    training = build(world)
    told = training.iterate()
    assert told["steps"] == 6 * 20
    assert told["episodes"] == 6 * 20 / 5
    assert told["score"] == pytest.approx(told["success"])
    assert told["steps_per_second"] == pytest.approx(120 / told["seconds"])
    assert training.iterate()["steps"] == 240


def test_without_a_finished_episode_there_is_no_score() -> None:
    told = build("repeat_first").iterate()
    assert told["episodes"] == 0
    assert math.isnan(told["score"])
    assert math.isnan(told["accuracy"])


def test_a_run_is_finished_when_its_budget_is_spent() -> None:
    training = build()
    while not training.finished:
        training.iterate()
    assert training.steps == 400


def test_a_budget_of_nothing_is_refused() -> None:
    world = ChainBit(2)
    policy = ActorCritic(world.single_observation_space, world.single_action_space, GRU)
    with pytest.raises(InvalidValueError, match="budget is 0; allowed: 1 or more"):
        Training(Stream(world), policy, SETTINGS, seed=0, budget=0)


def test_building_a_policy_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    a, b = (build_policy(3, lambda: torch.nn.Linear(4, 4)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.weight, b.weight)
