"""Every task and every memory of `engram clone` composes, builds and makes one update."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from engram.kernels.errors import InvalidValueError
from engram.launch.clone_build import (
    Lesson,
    build_imitation,
    build_vla,
    build_worlds,
    read_lesson,
)
from engram.launch.clone_config import compose_clone
from engram.launch.config import choices
from engram.launch.demos import record_into
from engram.policies.perception import SightSize

pytest.importorskip("mink", reason="needs engram[manipulation]")
pytest.importorskip("pyarrow", reason="needs engram[demonstrations]")

SMALL = [
    "demonstrations.objects=true",
    "demonstrations.episodes=1",
    "policy.perceptual=8",
    "policy.cognitive=16",
    "policy.features=16",
    "policy.expert.width=16",
    "policy.expert.depth=1",
    "batches.rows=2",
    "batches.steps=4",
    "imitation.moments=4",
    "device=cpu",
]


def compose(*arguments: str) -> dict[str, Any]:
    (tree,) = compose_clone([*SMALL, *arguments]).trees.values()
    return tree


def record(tree: dict[str, Any], folder: Path) -> Lesson:
    record_into(folder, tree, workers=1, console=Console(quiet=True))
    return read_lesson(tree, folder)


def update(tree: dict[str, Any], lesson: Lesson) -> None:
    """Make one update; check that the memory learns."""
    imitation = build_imitation(tree, lesson, device=torch.device("cpu"), seed=0)
    weights = dict(imitation.policy.memory.named_parameters())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    report = imitation.iterate()
    assert report["updates"] == 1 and math.isfinite(report["action"])
    assert all(math.isfinite(value) for value in report.values())
    still = [name for name, weight in weights.items() if torch.equal(weight, before[name])]
    assert len(still) <= len(weights) // 2, still
    assert not weights or len(still) < len(weights)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return record(compose(), tmp_path_factory.mktemp("demonstrations"))


def each(names: list[str], *quick: str) -> list[Any]:
    """Names of files; those that are not `quick` wait for the second stage, for their number."""
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("memory", each(choices("streams"), "none", "gru", "bank"))
def test_every_memory_is_cloned(memory: str, lesson: Lesson) -> None:
    update(compose(f"memory={memory}"), lesson)


@pytest.mark.parametrize("task", each(choices("task"), "shell_game", "put_back"))
def test_every_task_is_recorded_and_cloned(task: str, tmp_path: Path) -> None:
    tree = compose(f"task={task}", "memory=gru")
    lesson = record(tree, tmp_path)
    assert len(lesson.episodes) == 1
    update(tree, lesson)
    gaps = tree["task"]["gaps"]
    assert gaps == sorted(set(gaps)) and gaps[-1] > max(tree["task"]["settings"]["gap"])
    worlds, instruction = build_worlds(tree, num_envs=1, gap=gaps[0])
    try:
        assert lesson.language.encode([instruction]).any()
        worlds.reset(seed=0)
        assert 0 < worlds.first_choice_chance < 1
    finally:
        worlds.close()


@pytest.mark.parametrize("gap", [None, 7, 250])
def test_worlds_wait_as_long_as_was_asked(gap: int | None) -> None:
    tree = compose("task=remember_color")
    shortest, longest = tree["task"]["settings"]["gap"]
    worlds, _ = build_worlds(tree, num_envs=3, gap=gap)
    try:
        drawn = set()
        for seed in range(4):
            worlds.reset(seed=seed)
            drawn |= {world.unwrapped.task.gap for world in worlds.vector.envs}  # type: ignore
        assert drawn == {gap} if gap else shortest <= min(drawn) < max(drawn) <= longest
    finally:
        worlds.close()


@pytest.mark.parametrize("batches", each(choices("batches"), "cue_frames"))
def test_every_kind_of_batch_is_learnt(batches: str, lesson: Lesson) -> None:
    quick = [setting for setting in SMALL if setting != "batches.steps=4"]
    small = ["batches.frames.count=4"] if batches.endswith("d_frames") else []
    (tree,) = compose_clone([*quick, f"batches={batches}", "memory=gru", *small]).trees.values()
    update(tree, lesson)


@pytest.mark.parametrize("denoising", choices("denoising"))
def test_every_denoising_is_learnt(denoising: str, lesson: Lesson) -> None:
    update(compose(f"denoising={denoising}", "memory=gru"), lesson)


PICTURES = [setting for setting in SMALL if "objects" not in setting]


@pytest.mark.slow
@pytest.mark.parametrize("vision", [name for name in choices("vision") if name != "vlm"])
def test_every_image_encoder_is_cloned(vision: str, tmp_path: Path) -> None:
    path = []
    if vision == "pretrained":
        hf = pytest.importorskip("transformers", reason="needs engram[vla]")
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
        config = hf.ViTConfig(image_size=32, patch_size=8, num_attention_heads=2, **sizes)
        hf.ViTModel(config).save_pretrained(tmp_path / "vit")
        hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
        path = [f"policy.vision.path={tmp_path / 'vit'}"]
    chosen = [*PICTURES, "memory=gru", f"vision={vision}", *path]
    (tree,) = compose_clone(chosen).trees.values()
    update(tree, record(tree, tmp_path / "demonstrations"))


def test_a_pretrained_encoder_needs_its_folder() -> None:
    pictures = SightSize(("top",), 64, 9, 3, 8, (0, 0), 0)
    (tree,) = compose_clone(["vision=pretrained", "memory=none"]).trees.values()
    with pytest.raises(InvalidValueError, match="the folder of a model"):
        build_vla(tree, pictures, (torch.full((4,), -1.0), torch.ones(4)), 0)
