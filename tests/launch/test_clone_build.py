"""What `engram clone` builds is what its configuration and the demonstrations say."""

from math import isfinite
from typing import Any

import pytest
import torch

from engram.agents.imitation import Imitation
from engram.agents.imitation_frames import Demonstration
from engram.agents.imitation_sights import quantiles_of, statistics_of
from engram.kernels.errors import EngramError
from engram.launch.clone_build import Lesson, build_imitation, build_vla
from engram.launch.clone_config import compose_clone
from engram.policies.language import Vocabulary
from engram.policies.perception import Sight, SightSize

SIZES = SightSize(
    cameras=(), image=0, proprioception=12, words=4, length=3, objects=(2, 3), oracle=0
)
SCALE = -torch.ones(4), torch.ones(4)


def composed(*arguments: str) -> dict[str, Any]:
    (tree,) = compose_clone(
        ["demonstrations.objects=true", "memory=gru", *arguments]
    ).trees.values()
    return tree


def lesson(*, marked: bool) -> Lesson:
    """Four demonstrations of ten frames, whose last three are marked as the decision, or not."""
    length, random = 10, torch.Generator().manual_seed(0)
    decision = torch.zeros(length)
    if marked:
        decision[-3:] = 1
    episodes = [
        Demonstration(
            Sight(
                {},
                3 + 2 * torch.randn(length, 12, generator=random),
                torch.zeros(length, 3, dtype=torch.int64),
                torch.randn(length, 2, 3, generator=random),
                torch.zeros(length, 0),
            ),
            torch.rand(length, 4, generator=random),
            5 + 2 * torch.randn(length, 1, generator=random),
            torch.zeros(length),
            decision,
            torch.zeros(length),
        )
        for _ in range(4)
    ]
    words = Vocabulary.of(["touch it"], length=3)
    return Lesson(episodes, words, SIZES, quantiles_of(episodes), statistics_of(episodes))


def built(tree: dict[str, Any], *, marked: bool = True) -> Imitation:
    return build_imitation(tree, lesson(marked=marked), device=torch.device("cpu"), seed=0)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("temperature", (0.25, 0.5, 1.0)),
        ("guidance", (1.0, 1.5)),
        ("chunk", (8, 12)),
        ("execute", (1, 3)),
        ("looks", (0, 1, 2)),
    ],
)
def test_a_policy_is_what_was_asked_for(setting: str, values: tuple[float, ...]) -> None:
    for value in values:
        policy = build_vla(composed(f"policy.{setting}={value}"), SIZES, SCALE, 0)
        found = len(policy.looks) if setting == "looks" else getattr(policy, setting)
        assert found == value


def test_numbers_are_seen_and_asked_for_in_the_units_of_the_demonstrations() -> None:
    given, run = lesson(marked=True), built(composed())
    statistics: Any = given.statistics
    perception: Any = run.policy.perception
    for standard, (mean, std) in (
        (perception.felt.standard, statistics.proprioception),
        (perception.standard_object, statistics.objects),
        (run.recollection.standard, statistics.cue),
    ):
        torch.testing.assert_close(standard(mean + std), torch.ones(len(mean)))
        assert not torch.allclose(mean + std, torch.ones(len(mean)), atol=0.05)


def test_the_end_is_guessed_in_the_units_of_the_demonstrations() -> None:
    given = lesson(marked=True)
    foresight = built(composed()).foresight
    mean, std = given.statistics.proprioception
    torch.testing.assert_close(foresight.standard(mean + std), torch.ones(12))
    assert mean.abs().min() > 1


def test_the_end_is_asked_where_a_recording_marks_the_decision() -> None:
    assert "goal" in built(composed()).iterate()
    assert "goal" not in built(composed(), marked=False).iterate()
    assert "goal" not in built(composed("foresight.weight=0.0")).iterate()


@pytest.mark.parametrize(
    ("typed", "amx", "found"),
    [("auto", True, True), ("auto", False, False), ("true", False, True), ("false", True, False)],
)
def test_cpus_without_amx_compute_in_float32(
    typed: str, amx: bool, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    arguments = [f"imitation.bfloat16={typed}", "memory=[gru,none]", "device=cpu"]
    for tree in compose_clone(arguments).trees.values():
        assert tree["imitation"]["bfloat16"] is found


def test_a_torch_that_cannot_tell_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert composed()["imitation"]["bfloat16"] is False


def test_a_precision_that_does_not_exist_is_named() -> None:
    with pytest.raises(EngramError, match="bfloat16 is 'half'; allowed: auto, true, false"):
        compose_clone(["imitation.bfloat16=half"])


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["gru", "bank", "hcam"])
def test_a_run_learns_on_a_gpu(memory: str) -> None:
    tree = composed(f"memory={memory}", "batches.rows=2", "batches.steps=6", "imitation.moments=4")
    device = torch.device("cuda")
    run = build_imitation(tree, lesson(marked=True), device=device, seed=0)
    reports = [run.iterate() for _ in range(3)]
    assert run.updates == 3 and all(isfinite(report["action"]) for report in reports)
    assert all(parameter.is_cuda for parameter in run.policy.parameters())
