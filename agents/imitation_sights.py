"""What a policy sees, from demonstrations on disk and from simulated worlds."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from engram.agents.demonstrations.feature import FLOATS, NUMBERS, image_size
from engram.agents.demonstrations.reader import Demonstrations
from engram.agents.demonstrations.recording import (
    ASTRAY,
    DECISION,
    HIDDEN,
    KNOWN,
    OBJECTS,
    SHOWN,
    STATE,
)
from engram.agents.imitation_frames import Demonstration
from engram.kernels.errors import DataError, InvalidValueError
from engram.policies.language import Language, Vocabulary
from engram.policies.perception import Sight, SightSize, SightStatistics

IMAGES = "observation.images."


def sizes_of(
    source: Demonstrations, language: Language, *, objects: bool = False, told: bool = False
) -> SightSize:
    """Return what a policy sees of a data set: its images and states.

    Args:
        source: The demonstrations.
        language: Of the instructions.
        objects: Whether it sees objects as numbers instead of images.
        told: Whether it is told what the others must remember.

    Raises:
        DataError: If the data set lacks a column, one that must hold numbers has another type or
            shape, or its images are of several sizes.
    """
    features = source.features
    needed = [STATE, "action", *([OBJECTS] if objects else []), *([HIDDEN] if told else [])]
    for name in needed:
        if name not in features:
            raise DataError(f"{source.folder} has no column {name}; it has {sorted(features)}")
    for name in needed:
        _check_numbers(source, name, dimensions=2 if name == OBJECTS else 1)
    cameras = () if objects else tuple(sorted(n for n in features if n.startswith(IMAGES)))
    if not objects and not cameras:
        raise DataError(f"{source.folder} has no images ({IMAGES}…); it has {sorted(features)}")
    sizes = {side for name in cameras for side in image_size(features[name])}
    if len(sizes) > 1:
        shapes = {name: image_size(features[name]) for name in cameras}
        raise DataError(f"{source.folder}: images are {shapes}; allowed: squares of one size")
    table = tuple(features[OBJECTS].shape) if objects else (0, 0)
    return SightSize(
        cameras=tuple(name.removeprefix(IMAGES) for name in cameras),
        image=sizes.pop() if sizes else 0,
        proprioception=features[STATE].shape[0],
        words=len(language.words),
        length=language.length,
        objects=(table[0], table[1]),
        oracle=features[HIDDEN].shape[0] if told else 0,
    )


def _check_numbers(source: Demonstrations, name: str, *, dimensions: int) -> None:
    """Refuse a column that does not hold so many dimensions of numbers per frame."""
    dtype, shape, _ = source.features[name]
    known = ("float16", *FLOATS, *NUMBERS)
    if dtype not in known:
        allowed = ", ".join(known)
        raise DataError(f"{source.folder}: dtype of {name} is {dtype!r}; allowed: {allowed}")
    if len(shape) != dimensions:
        seen = f"shape of {name} is {list(shape)}"
        raise DataError(f"{source.folder}: {seen}; allowed: {dimensions} dimension(s)")


def load(
    source: Demonstrations, language: Language, sizes: SightSize, *, limit: int | None = None
) -> list[Demonstration]:
    """Read demonstrations into memory, images as they are (uint8).

    Args:
        source: Where from.
        language: Of the instructions.
        sizes: What of them is wanted.
        limit: Number of episodes, the first ones; all unless given.
    """
    count = source.count if limit is None else min(limit, source.count)
    marks = HIDDEN, SHOWN, KNOWN, DECISION, ASTRAY
    optional = [name for name in marks if name in source.features]
    keys = [STATE, "action", *optional, *(IMAGES + name for name in sizes.cameras)]
    keys += [OBJECTS] if sizes.objects[0] else []
    found = []
    for episode in range(count):
        columns = {k: torch.from_numpy(v) for k, v in source.read(episode, keys).items()}
        columns = {k: v if k.startswith(IMAGES) else v.float() for k, v in columns.items()}
        length = len(columns["action"])
        words = language.encode([source.task(episode)]).expand(length, -1)
        hidden = columns.get(HIDDEN, torch.zeros(length, 0))
        decision = columns.get(DECISION, torch.zeros(length, 1))[:, 0]
        shown = columns.get(SHOWN, torch.zeros(length, 1))[:, 0]
        astray = columns.get(ASTRAY, torch.zeros(length, 1))[:, 0]
        # Nothing can be remembered before it was in view: all that data of others say.
        known = columns[KNOWN][:, 0] if KNOWN in columns else (shown + decision).cummax(0).values
        images = {name: columns[IMAGES + name] for name in sizes.cameras}
        objects = columns.get(OBJECTS, torch.zeros(length, *sizes.objects))
        oracle = hidden if sizes.oracle else torch.zeros(length, 0)
        found.append(
            Demonstration(
                Sight(images, columns[STATE], words, objects, oracle),
                columns["action"],
                torch.where(known[:, None] > 0, hidden, torch.nan),
                shown,
                decision,
                astray,
            )
        )
    return found


def sight_of(
    observation: Mapping[str, Tensor], words: Int[Tensor, "N W"], sizes: SightSize
) -> Sight:
    """Return what N simulated robots see, from the observation of a batch of worlds.

    Args:
        observation: Of the worlds.
        words: The instructions, as a `Language` numbers them: once per episode, not per step.
        sizes: Of the parts of a sight.

    Raises:
        InvalidValueError: If the observation lacks a part.
    """
    parts = {"objects": sizes.objects[0], "oracle": sizes.oracle}
    needed = ["proprioception", *sizes.cameras, *(name for name, size in parts.items() if size)]
    if any(name not in observation for name in needed):
        raise InvalidValueError("parts of the observation", sorted(observation), needed)
    felt = observation["proprioception"]
    count = len(felt)
    return Sight(
        {name: observation[name] for name in sizes.cameras},
        felt,
        words.to(felt.device),
        observation["objects"] if sizes.objects[0] else felt.new_zeros(count, 0, 0),
        observation["oracle"] if sizes.oracle else felt.new_zeros(count, 0),
    )


def vocabulary_of(source: Demonstrations) -> Vocabulary:
    """Collect the words of all instructions of a data set."""
    return Vocabulary.of({source.task(episode) for episode in range(source.count)})


def quantiles_of(episodes: list[Demonstration]) -> tuple[Tensor, Tensor]:
    """Return the 1 % and 99 % quantiles of every number of an action.

    Of a number that moves in fewer frames than that, a trigger say, the least and the largest.
    """
    action = torch.cat([episode.action for episode in episodes]).numpy()
    low, high = np.quantile(action, [0.01, 0.99], axis=0)
    still = low == high
    low, high = np.where(still, action.min(0), low), np.where(still, action.max(0), high)
    return torch.from_numpy(low).float(), torch.from_numpy(high).float()


def statistics_of(episodes: list[Demonstration]) -> SightStatistics:
    """Return mean and standard deviation of what is felt, of the objects in view, of known cues."""
    felt = torch.cat([episode.sight.proprioception for episode in episodes])
    objects = torch.cat([episode.sight.objects.flatten(0, 1) for episode in episodes])
    mean, std = _moments(objects[(objects != 0).any(-1)])
    # What all objects in view have in common, as the flag that they are, must not become zero.
    of_objects = torch.where(std > 1e-6, mean, 0.0), std
    cue = torch.cat([episode.cue for episode in episodes])
    return SightStatistics(_moments(felt), of_objects, _moments(cue[~cue.isnan().any(-1)]))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    if not x.numel():
        return x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    return x.mean(0), x.std(0, correction=0)
