"""What a run of `engram clone` saves: its policy, and what that sees."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from engram.agents import checkpoint
from engram.kernels.errors import DataError, InvalidValueError
from engram.launch.clone_build import Lesson, build_vla, prompts_of
from engram.launch.config import UsageError
from engram.launch.files import read_json, write_json
from engram.launch.folder import CHECKPOINT, read_config
from engram.launch.variants import BEFORE, CONTROL
from engram.policies.language import Language, Vocabulary
from engram.policies.perception import SightSize
from engram.policies.vla import VLA

SIGHT = "sight.json"
"""What the policy of a run sees, and the words it knows, if no model knows its own."""
FORMAT = 1
MODEL = "policy.vision.path"
"""Key of the folder that a pretrained model is read from, which may have moved."""


class Cloned(NamedTuple):
    """A policy and what is needed to let it act."""

    policy: VLA
    language: Language
    updates: int
    """Made so far."""
    seconds: float
    """Of training so far."""


def write_sight(folder: Path, lesson: Lesson) -> None:
    """Write what the policy of a run sees."""
    language = lesson.language
    known = language.words if isinstance(language, Vocabulary) else None  # a model knows its own
    words = {"words": known, "length": language.length}
    facts = {"format": FORMAT, "sizes": lesson.sizes._asdict(), **words}
    write_json(folder / SIGHT, facts)


def read_tree(folder: Path, model: str | None = None) -> dict[str, Any]:
    """Return the configuration of a run.

    Args:
        folder: Of the run.
        model: Where the pretrained model is that its policy sees with, if it is not where it was.

    Raises:
        DataError: If the folder holds none, or a part of it is missing.
        UsageError: If a model is named, and the policy sees with none.
    """
    tree = read_config(folder)["tree"]
    for name in ("task", "demonstrations", "streams", "policy", "imitation", "evaluation"):
        if not isinstance(tree.get(name), dict):
            raise DataError(f"{folder / 'config.json'} is damaged: it has no settings of {name}")
    # Of clones made before there was a choice:
    tree["policy"].setdefault("looks", 0)
    tree["demonstrations"].setdefault(CONTROL, {"_target_": BEFORE, "_partial_": True})
    if model is not None:
        vision = tree["policy"].get("vision")
        if not isinstance(vision, dict) or "path" not in vision:
            seen = f"the policy in {folder} sees with no pretrained model"
            raise UsageError(f"{MODEL} is {model!r}, but {seen}; allowed: other keys")
        vision["path"] = model
    return tree


def load_clone(
    folder: Path, device: torch.device, model: str | None = None
) -> tuple[Cloned, dict[str, Any]]:
    """Rebuild the policy that a run's evaluation used; return it and the configuration.

    Args:
        folder: Of the run.
        device: Where to.
        model: As for `read_tree`. If it does not learn, what is in its folder must be what the
            policy learnt with; if it does, its weights are those of the run, whatever is there.

    Raises:
        DataError: If the folder holds no such run, or a damaged one, or if a model that does not
            learn is another.
        UsageError: If a model is named, and is none, or the policy sees with none.
    """
    tree = read_tree(folder, model)
    facts = read_json(folder / SIGHT)
    try:
        if facts["format"] != FORMAT:
            raise DataError(f"{folder / SIGHT}: format is {facts['format']}; allowed: {FORMAT}")
        known, length = facts["words"], facts["length"]
        parts: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["sizes"].items()}
        sizes = SightSize(**parts)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / SIGHT} is damaged: {error}") from None
    tensors, said = checkpoint.read(folder / CHECKPOINT, device)
    average = checkpoint.part(checkpoint.part(tensors, "average"), "module")
    try:
        scale = (average["scale.low"], average["scale.high"])
    except KeyError as error:
        raise DataError(
            f"{folder / CHECKPOINT} is damaged or of another version: it has no {error}"
        ) from None
    try:
        language = prompts_of(tree)
        policy = build_vla(tree, sizes, scale, 0).to(device)
    except KeyError as error:
        raise DataError(
            f"{folder / 'config.json'} is damaged or of another version: it has no {error}"
        ) from None
    except InvalidValueError as error:  # a model that is not where it was, say
        if model is not None:
            raise UsageError(f"with {MODEL}={model!r}: {error}") from None  # or what is saved is
        moved = "path" in tree["policy"].get("vision", {})
        remedy = f" (where it is now says {MODEL})" if moved else ""
        raise DataError(f"{folder / 'config.json'}: {error}{remedy}") from None
    if language is None:
        try:
            language = Vocabulary(known, length=length)
        except (InvalidValueError, TypeError) as error:
            raise DataError(f"{folder / SIGHT} is damaged: {error}") from None
    checkpoint.load_module(policy, average, folder / CHECKPOINT)
    try:
        return Cloned(policy.eval(), language, said["updates"], said["seconds"]), tree
    except KeyError as error:
        raise DataError(f"{folder / CHECKPOINT} is damaged: it has no {error}") from None
