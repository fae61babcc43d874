"""Evaluation in the simulator: every episode is counted once, and judged by what it ended with."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from engram.agents.imitation_evaluation import Outcome, evaluate_in_simulation
from engram.envs.manipulation import Manipulation, Oracle, make_task
from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import PresentOnly
from engram.policies.action_expert import ActionExpert
from engram.policies.action_scale import ActionScale
from engram.policies.language import Vocabulary
from engram.policies.perception import Perception, SightSize
from engram.policies.vla import VLA, ActingState

pytest.importorskip("mink", reason="needs engram[manipulation]")

SETTINGS = {"gap": (1, 3), "onset": 1, "cue": 1, "patience": 12}
LIMIT = 1 + 1 + 3 + 12
TASK = make_task("remember_color", **SETTINGS)
VOCABULARY = Vocabulary.of([TASK.instruction])


def worlds(count: int = 2, *, told: bool = False) -> Manipulation:
    return Manipulation(count, settings=SETTINGS, cameras=(), objects=True, oracle=told)


def policy(env: Manipulation, *, told: bool = False) -> VLA:
    objects = env.single_observation_space["objects"].shape
    sizes = SightSize(
        (), 0, 12, len(VOCABULARY.words), VOCABULARY.length, objects, TASK.hints if told else 0
    )
    actions = env.single_action_space.shape[0]
    return VLA(
        Perception(sizes, perceptual=8, cognitive=16, features=16, heads=2),
        PresentOnly,
        partial(ActionExpert, width=16, depth=1, heads=2),
        ActionScale(-torch.ones(actions), torch.ones(actions)),
    )


class Scripted:
    """Acts as a script says, in place of a policy's `act`; keeps what it was called with."""

    def __init__(self, env: Manipulation, choose: Callable[[Any, Oracle, int], Tensor]):
        self.env, self.choose = env, choose
        self.oracles = [Oracle(seed=i) for i in range(env.num_envs)]
        self.starts: list[list[bool]] = []
        self.told: list[Tensor] = []

    def act(
        self, sight: Any, state: ActingState, start: Tensor, generator: Any
    ) -> tuple[Tensor, ActingState]:
        self.starts.append(start.tolist())
        self.told.append(sight.oracle)
        copies = [copy.unwrapped for copy in self.env.vector.envs]  # type: ignore[attr-defined]
        rows = [
            self.choose(c, o, i) for i, (c, o) in enumerate(zip(copies, self.oracles, strict=False))
        ]
        return torch.stack(rows), state


def knowing(env: Any, oracle: Oracle, row: int) -> Tensor:
    return torch.from_numpy(oracle.act(env))


def still(env: Any, oracle: Oracle, row: int) -> Tensor:
    return torch.zeros(env.action_space.shape)


def mistaken(env: Any, oracle: Oracle, row: int) -> Tensor:
    """Touches a cube of another colour: the oracle is misled when it asks for the fact."""
    fact = env.task.fact
    env.task.fact = (fact + 1) % env.task.facts
    action = oracle.act(env)
    env.task.fact = fact
    return torch.from_numpy(action)


def evaluate(choose: Any, *, episodes: int = 4, count: int = 2) -> tuple[Outcome, Scripted]:
    env = worlds(count)
    actor = policy(env)
    scripted = Scripted(env, choose)
    actor.act = scripted.act
    found = evaluate_in_simulation(
        actor, env, TASK.instruction, VOCABULARY, episodes=episodes, seed=1
    )
    env.close()
    assert found is not None
    return found, scripted


def test_who_knows_the_answer_succeeds_every_time() -> None:
    found, scripted = evaluate(knowing, episodes=3)
    assert found.success == found.first_choice == found.chosen == 1
    assert found.episodes == 4, "as many in each of two worlds"
    assert 5 < found.length < LIMIT and found.memory_bytes == 0
    assert scripted.starts[0] == [True, True]
    begun = sum(row for flags in scripted.starts for row in flags)
    assert begun >= 4, "every episode begins with a start"


def test_who_does_nothing_never_chooses_and_runs_out_of_time() -> None:
    found, scripted = evaluate(still)
    assert found.success == found.first_choice == found.chosen == 0
    assert found.episodes == 4 and found.length <= LIMIT
    assert len(scripted.starts) >= 2 * found.length - LIMIT


def test_a_wrong_choice_is_a_choice_and_no_success() -> None:
    found, _ = evaluate(mistaken)
    assert found.chosen == 1 and found.first_choice == 0 and found.success == 0


def test_rows_are_judged_apart() -> None:
    def half(env: Any, oracle: Oracle, row: int) -> Tensor:
        return (knowing, still)[row](env, oracle, row)

    found, _ = evaluate(half, episodes=6)
    # The quick world plays more episodes meanwhile; they must not count.
    assert found.episodes == 6 and found.success == found.first_choice == found.chosen == 0.5


def test_only_the_told_see_the_answer() -> None:
    for told in (False, True):
        env = worlds(told=told)
        actor = policy(env, told=told)
        scripted = Scripted(env, knowing)
        actor.act = scripted.act
        found = evaluate_in_simulation(actor, env, TASK.instruction, VOCABULARY, episodes=2, seed=0)
        assert found is not None and found.success == 1
        for oracle in scripted.told:
            assert oracle.shape == (2, 3 if told else 0)
            assert not told or torch.equal(oracle.sum(1), torch.ones(2))
        env.close()


def test_a_policy_without_practice_acts_within_the_limits_of_the_simulator() -> None:
    env = worlds()
    actor = policy(env)
    with torch.no_grad():
        actor.expert.action_out.weight.mul_(1e4)
    ran = partial(evaluate_in_simulation, actor, env, TASK.instruction, VOCABULARY, episodes=2)
    first, again = ran(seed=3), ran(seed=3)
    assert first == again, "everything follows from the seed"
    assert first is not None and 0 <= first.success <= first.chosen <= 1
    env.close()


def test_evaluation_can_be_stopped() -> None:
    env = worlds()
    answers = iter([False, False, True])
    found = evaluate_in_simulation(
        policy(env),
        env,
        TASK.instruction,
        VOCABULARY,
        episodes=2,
        seed=0,
        stopping=lambda: next(answers),
    )
    assert found is None
    env.close()


def test_no_episode_and_blind_worlds_are_refused() -> None:
    env = worlds()
    with pytest.raises(InvalidValueError, match="episodes is 0; allowed: 1 or more"):
        evaluate_in_simulation(policy(env), env, TASK.instruction, VOCABULARY, episodes=0, seed=0)
    with pytest.raises(InvalidValueError, match=r"parts of the observation is .*oracle"):
        evaluate_in_simulation(
            policy(env, told=True), env, TASK.instruction, VOCABULARY, episodes=1, seed=0
        )
    env.close()
