"""Builds policies, batches and worlds of `engram clone` from a composed configuration."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from engram.agents.demonstrations import Demonstrations
from engram.agents.demonstrations.layout import read_info
from engram.agents.imitation import Imitation
from engram.agents.imitation_batches import Batches
from engram.agents.imitation_frames import Demonstration
from engram.agents.imitation_sights import (
    load,
    quantiles_of,
    sizes_of,
    statistics_of,
    vocabulary_of,
)
from engram.agents.seeds import derive
from engram.agents.training import build_policy
from engram.envs.manipulation import Manipulation, ManipulationEnv, make_task
from engram.envs.manipulation.environment import ACTION_LIMITS, RATE
from engram.kernels.errors import DataError, InvalidValueError
from engram.launch.build import instantiate_plainly, plain_errors
from engram.policies.action_scale import ActionScale
from engram.policies.foresight import Foresight
from engram.policies.language import Language
from engram.policies.perception import Perceiver, Perception, SightSize, SightStatistics
from engram.policies.pretrained_vlm import PretrainedVLM, Prompts
from engram.policies.recollection import Recollection
from engram.policies.vla import VLA


class Lesson(NamedTuple):
    """What a run is given: demonstrations and what follows from them alone."""

    episodes: list[Demonstration]
    language: Language
    sizes: SightSize
    scale: tuple[torch.Tensor, torch.Tensor]
    """Quantiles of the actions."""
    statistics: SightStatistics


def open_demonstrations(folder: Path, *, skip_damaged: bool) -> Demonstrations:
    """Open demonstrations of a simulated task.

    Raises:
        DataError: If their index is damaged, or they are of another frame rate.
    """
    if (fps := read_info(folder)["fps"]) != RATE:  # before all that may be damaged is read
        raise DataError(f"{folder} has {fps:g} frames per second; allowed: {RATE}")
    return Demonstrations(folder, skip_damaged=skip_damaged, limits={"action": ACTION_LIMITS})


def read_lesson(tree: dict[str, Any], folder: Path) -> Lesson:
    """Read the demonstrations of a run.

    Raises:
        DataError: If they are damaged and damaged ones are not left out, or if they lack what the
            policy is to see.
    """
    source = open_demonstrations(folder, skip_damaged=tree["demonstrations"]["skip_damaged"])
    try:
        if not source.count:
            raise DataError(
                f"{folder} holds no demonstration{' that is whole' * bool(source.damage)}"
            )
        language = prompts_of(tree) or vocabulary_of(source)
        sizes = sizes_of(
            source,
            language,
            objects=tree["demonstrations"]["objects"],
            told=tree["policy"]["told"],
        )
        episodes = load(source, language, sizes, limit=tree["demonstrations"]["episodes"])
    finally:
        source.close()
    return Lesson(episodes, language, sizes, quantiles_of(episodes), statistics_of(episodes))


def build_vla(
    tree: dict[str, Any],
    sizes: SightSize,
    scale: tuple[torch.Tensor, torch.Tensor],
    seed: int,
    statistics: SightStatistics | None = None,
) -> VLA:
    """Build a policy with the initial weights of its seed.

    Raises:
        EngramError: If a part does not take its settings.
    """
    settings = tree["policy"]

    def make() -> VLA:
        return VLA(
            _perceiver(settings, sizes, statistics),
            instantiate_plainly(tree["streams"]),
            instantiate_plainly(settings["expert"]),
            ActionScale(*scale),
            chunk=settings["chunk"],
            execute=settings["execute"],
            denoising=instantiate_plainly(settings["denoising"]),
            looks=settings["looks"],
            guidance=settings["guidance"],
            temperature=settings["temperature"],
        )

    with plain_errors("policy"):  # what is a partial is called in there
        return build_policy(seed, make)


def _perceiver(
    settings: dict[str, Any], sizes: SightSize, statistics: SightStatistics | None
) -> Perceiver:
    vision = instantiate_plainly(settings["vision"])
    shared = {
        "perceptual": settings["perceptual"],
        "cognitive": settings["cognitive"],
        "statistics": statistics,
    }
    if _reads(vision):
        return vision(sizes, **shared)
    return Perception(sizes, vision=vision, features=settings["features"], **shared)


def prompts_of(tree: dict[str, Any]) -> Prompts | None:
    """Return how instructions are read where a vision-language model does; None elsewhere.

    Raises:
        EngramError: If there is no such model, or if it is to see objects.
    """
    vision, sight = instantiate_plainly(tree["policy"]["vision"]), tree["demonstrations"]
    if not _reads(vision):
        return None
    if sight["objects"]:
        raise InvalidValueError("demonstrations.objects", True, "false, with vision=vlm")
    given = {name: vision.keywords[name] for name in ("path", "spare")}
    with plain_errors("policy.vision"):
        return Prompts(**given, cameras=len(sight["cameras"]), image=sight["image"])


def _reads(vision: Any) -> bool:
    """Return whether what sees is a vision-language model, which reads the instruction, too."""
    return isinstance(vision.func, type) and issubclass(vision.func, PretrainedVLM)


def build_imitation(
    tree: dict[str, Any], lesson: Lesson, *, device: torch.device, seed: int
) -> Imitation:
    """Build a run at its first update."""
    policy = build_vla(tree, lesson.sizes, lesson.scale, seed, lesson.statistics).to(device)
    cues = lesson.episodes[0].cue.shape[1]
    with plain_errors("recollection"):
        recollection = build_policy(
            derive(seed, "recollection"),
            lambda: Recollection(
                policy.perception, cues, lesson.statistics.cue, **tree["recollection"]
            ),
        ).to(device)
    with plain_errors("foresight"):
        felt = lesson.statistics.proprioception
        marked = any(bool(episode.decision.any()) for episode in lesson.episodes)
        foresight = build_policy(
            derive(seed, "foresight"),
            lambda: Foresight(policy.perception, felt, marked=marked, **tree["foresight"]),
        ).to(device)
    make = instantiate_plainly(tree["batches"])
    with plain_errors("batches"):
        batches: Batches = make(
            lesson.episodes, chunk=tree["policy"]["chunk"], seed=derive(seed, "batches")
        )
    settings = instantiate_plainly(tree["imitation"])
    return Imitation(policy, recollection, foresight, batches, settings, seed=seed)


def build_world(tree: dict[str, Any], **settings: Any) -> ManipulationEnv:
    """Build one world of a task, with what its demonstrations show.

    Args:
        tree: The configuration.
        settings: Further ones of `ManipulationEnv`.
    """
    return ManipulationEnv(
        tree["task"]["name"], **_body(tree), **settings, **tree["task"]["settings"]
    )


def _body(tree: dict[str, Any]) -> dict[str, Any]:
    """Return what a robot sees, and what its actions mean."""
    sight = tree["demonstrations"]
    return {
        "cameras": () if sight["objects"] else tuple(sight["cameras"]),
        "size": sight["image"],
        "objects": sight["objects"],
        "control": instantiate_plainly(sight["control"]),
    }


def build_worlds(
    tree: dict[str, Any], *, num_envs: int, gap: int | None = None
) -> tuple[Manipulation, str]:
    """Build the simulator of a task; return it and its instruction.

    Args:
        tree: The configuration.
        num_envs: Number of worlds.
        gap: Steps of the gap, instead of those of training.
    """
    task = tree["task"]
    settings = dict(task["settings"])
    if gap is not None:
        settings["gap"] = [gap, gap]
    worlds = Manipulation(
        num_envs,
        task=task["name"],
        settings=settings,
        oracle=tree["policy"]["told"],
        **_body(tree),
    )
    return worlds, make_task(task["name"], **settings).instruction
