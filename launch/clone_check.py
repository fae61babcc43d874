"""What is wrong with `engram clone` is said before hours are spent on it."""

from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces

from engram.agents.demonstrations.recording import HIDDEN, features_of
from engram.agents.imitation_frames import Demonstration
from engram.agents.imitation_sights import statistics_of
from engram.envs.manipulation import ManipulationEnv
from engram.envs.manipulation.environment import make_task
from engram.kernels.errors import DataError, InvalidValueError, is_whole
from engram.launch.clone_build import Lesson, build_imitation, build_world, prompts_of, read_lesson
from engram.launch.clone_config import RUN
from engram.launch.config import UsageError, compose_tree
from engram.launch.demos import RECORDING, differing, read_recording
from engram.launch.variants import recorded_with
from engram.policies.language import Language, Vocabulary
from engram.policies.perception import Sight, SightSize

_FRAMES = 8


def check_clone(tree: dict[str, Any]) -> None:
    """Build everything that a run will build, from one invented demonstration.

    Raises:
        EngramError: On the first setting that cannot work.
    """
    check_gaps(tree["task"])
    folder = tree["demonstrations"]["folder"]
    if folder is not None and not (isinstance(folder, str) and Path(folder).is_dir()):
        raise UsageError(f"demonstrations.folder: {folder!r}; allowed: a folder, or null")
    if folder is None and tree["demonstrations"]["skip_damaged"]:
        allowed = "false, where demonstrations.folder is null"
        raise InvalidValueError("demonstrations.skip_damaged", True, allowed)
    world = build_world(tree)
    try:
        lesson = _invented(tree, world)
    finally:
        world.close()
    build_imitation(tree, lesson, device=torch.device("cpu"), seed=0)


def take_folder(tree: dict[str, Any]) -> None:
    """Note in a tree how the folder that it is given was recorded.

    What engram recorded must be of the task and the senses that are asked for. How exact it is and
    from which seed follows from the recording; a tree that says otherwise than by default is
    refused.

    Raises:
        UsageError: If the folder was recorded with other settings than the run is told.
        DataError: If the note on the recording is damaged.
    """
    folder = Path(tree["demonstrations"]["folder"])
    if (folder / RECORDING).exists():
        tree["demonstrations"] |= _recorded(folder, tree)


def check_first(tree: dict[str, Any]) -> None:
    """Check the first episode of a given folder before anything learns from it.

    Raises:
        DataError: If it is damaged, or of another robot or task.
    """
    one = {**tree, "demonstrations": {**tree["demonstrations"], "episodes": 1}}
    check_lesson(one, read_lesson(one, Path(tree["demonstrations"]["folder"])))


def _recorded(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """Return how a recording was made, in what nobody asked for something else.

    Raises:
        UsageError: If it is not the one that is asked for.
    """
    mine, theirs = recorded_with(tree), read_recording(folder)
    usual = recorded_with(compose_tree([f"task={tree['task']['name']}"], run=RUN))
    made: dict[str, Any] = {}
    for key in sorted(theirs.keys() | mine.keys()):
        ours, other = mine.get(key), theirs.get(key)
        if ours == other or (key in ("cameras", "image") and mine["objects"]):
            continue
        if key == "cameras" and isinstance(other, list) and set(mine[key]) == set(other):
            continue
        if key not in ("noise", "stray", "seed") or ours != usual[key]:
            raise differing(folder, key, ours, other)
        made[key] = other
    return made


def check_gaps(task: dict[str, Any]) -> None:
    """Check the gaps at which a task is evaluated.

    Raises:
        InvalidValueError: If they are not different whole numbers that the task can have.
    """
    gaps = task["gaps"]
    whole = all(is_whole(gap) and gap >= 0 for gap in gaps)
    if not gaps or not whole or len(set(gaps)) < len(gaps):
        raise InvalidValueError("task.gaps", gaps, "one or more different whole numbers, >= 0")
    for gap in gaps:
        make_task(task["name"], **{**task["settings"], "gap": [gap, gap]})


def check_lesson(tree: dict[str, Any], lesson: Lesson) -> None:
    """Check that demonstrations are of the robot and the task that will judge the policy.

    Raises:
        DataError: If they are not.
    """
    world = build_world(tree, oracle=tree["policy"]["told"])
    try:
        mine, instruction = _sizes(tree, world, lesson.language), world.task.instruction
        space, cues = world.action_space, world.task.hints
    finally:
        world.close()
    low, _ = lesson.scale
    assert isinstance(space, spaces.Box)
    where = f"{tree['demonstrations']['folder']} is judged in the task {tree['task']['name']}, but"
    for name, theirs, ours in zip(SightSize._fields, lesson.sizes, mine, strict=True):
        if theirs != ours:
            raise DataError(f"{where} {name} is {theirs}; allowed: {ours}")
    if (told := lesson.episodes[0].cue.shape[1]) not in (0, cues):
        raise DataError(f"{where} {HIDDEN} has {told} numbers; allowed: {cues}, or no such column")
    if tuple(low.shape) != space.shape:
        raise DataError(f"{where} an action has {len(low)} numbers; allowed: {space.shape[0]}")
    lesson.language.encode([instruction])


def _sizes(tree: dict[str, Any], world: ManipulationEnv, language: Language) -> SightSize:
    sight, space = tree["demonstrations"], world.observation_space
    objects = space["objects"].shape if sight["objects"] else (0, 0)  # type: ignore[index]
    return SightSize(
        cameras=tuple(sorted(world.senses.cameras)),
        image=sight["image"] if world.senses.cameras else 0,
        proprioception=space["proprioception"].shape[0],  # type: ignore[index]
        words=len(language.words),
        length=language.length,
        objects=(int(objects[0]), int(objects[1])),
        oracle=world.task.hints if tree["policy"]["told"] else 0,
    )


def _invented(tree: dict[str, Any], world: ManipulationEnv) -> Lesson:
    """Return what demonstrations of a world would teach, without making one."""
    language = prompts_of(tree) or Vocabulary.of({world.task.instruction})
    sizes = _sizes(tree, world, language)
    (actions,) = features_of(world)["action"].shape
    side, frames = sizes.image, _FRAMES
    sight = Sight(
        {c: torch.zeros(frames, side, side, 3, dtype=torch.uint8) for c in sizes.cameras},
        torch.zeros(frames, sizes.proprioception),
        language.encode([world.task.instruction]).expand(frames, -1),
        torch.zeros(frames, *sizes.objects),
        torch.zeros(frames, sizes.oracle),
    )
    nothing = torch.zeros(frames)
    cue = torch.full((frames, world.task.hints), float("nan"))
    episode = Demonstration(sight, torch.zeros(frames, actions), cue, nothing, nothing, nothing)
    scale = -torch.ones(actions), torch.ones(actions)
    return Lesson([episode], language, sizes, scale, statistics_of([episode]))
