"""`engram film`: an episode of a task as MP4 or GIF, of the scripted policy or of a cloned one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from engram.agents.imitation_sights import sight_of
from engram.agents.seeds import derive
from engram.envs.manipulation import ManipulationEnv, Oracle
from engram.envs.manipulation.environment import RATE
from engram.kernels.errors import InvalidValueError, MissingPackageError
from engram.kernels.files.whole import whole_file
from engram.launch.clone_build import build_world
from engram.launch.clone_config import compose_clone
from engram.launch.clone_saved import MODEL, load_clone
from engram.launch.config import UsageError

Act = Callable[[dict[str, np.ndarray]], np.ndarray]


def film(arguments: list[str], console: Console) -> int:
    """Film one episode.

    Args:
        arguments: `out=FILE.mp4` or `.gif`; `run=FOLDER` of a run of `engram clone`, or
            `task=NAME` for the scripted policy; `seed=N`; keys of `engram clone`. With a run,
            `policy.vision.path` is where the pretrained model is now that its policy sees with.
        console: Where the result is told.

    Returns:
        The exit status.
    """
    own = {"run": "", "out": "", "seed": "0", MODEL: ""}
    rest = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in own:
            if not value:
                raise UsageError(f"argument {argument!r} names nothing; allowed: {key}=value")
            own[key] = value
        else:
            rest.append(argument)
    out = Path(own["out"] or "episode.mp4")
    if out.suffix not in (".mp4", ".gif"):
        raise InvalidValueError("out", str(out), "a file that ends in .mp4 or .gif")
    if not own["seed"].isdecimal():
        raise InvalidValueError("seed", own["seed"], "a whole number, 0 or more")
    seed = int(own["seed"])
    if own["run"]:
        if rest:
            allowed = ", ".join(own)
            raise UsageError(f"{rest[0]!r} is a key of the run already; allowed: {allowed}")
        env, act = _cloned(Path(own["run"]), seed, own[MODEL] or None)
    else:
        settings = compose_clone(rest + [f"{MODEL}={own[MODEL]}"] * bool(own[MODEL]))
        if len(settings.tasks) > 1:
            raise UsageError(f"task is {settings.tasks}; allowed: one")
        env = _world(settings.trees[settings.tasks[0], settings.memories[0]])
        oracle = Oracle(seed=seed)
        act = lambda _: oracle.act(env)  # noqa: E731
    if out.is_dir():
        raise InvalidValueError("out", str(out), "a file, no folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as file:  # open before the episode, which would else be played for nothing
        frames, info = play(env, act, seed)
        encode(file, frames, out.suffix)
    choice = info["first_choice_correct"]
    console.print(
        f"{out}: {len(frames)} frames; {env.instruction} "
        f"Success: {'yes' if info['success'] else 'no'}; first choice: "
        f"{'none' if np.isnan(choice) else 'right' if choice else 'wrong'}."
    )
    return 0


def play(env: ManipulationEnv, act: Act, seed: int) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Play an episode; return its pictures and what it ended with."""
    observation, info = env.reset(seed=seed)
    pictures, ended = [env.render()], False
    while not ended:
        observation, _, terminated, truncated, info = env.step(act(observation))
        pictures.append(env.render())
        ended = terminated or truncated
    return [picture for picture in pictures if picture is not None], info


def encode(file: Any, frames: list[np.ndarray], suffix: str) -> None:
    """Write pictures `[H, W, 3]` uint8 as a film, at the pace of the simulation."""
    if suffix == ".gif":
        from PIL import Image

        images = [Image.fromarray(frame).quantize(128) for frame in frames]
        images[0].save(
            file, "GIF", save_all=True, append_images=images[1:], duration=1000 // RATE, loop=0
        )
        return
    try:
        import av
    except ImportError:
        raise MissingPackageError("av", "demonstrations") from None
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _world(tree: dict[str, Any]) -> ManipulationEnv:
    return build_world(tree, oracle=tree["policy"]["told"], render_mode="rgb_array")


def _cloned(folder: Path, seed: int, model: str | None) -> tuple[ManipulationEnv, Act]:
    """Return the world of a run, and its policy."""
    cloned, tree = load_clone(folder, torch.device("cpu"), model)
    policy = cloned.policy
    env = _world(tree)
    state, start = policy.initial_state(1), torch.ones(1, dtype=torch.bool)
    words = cloned.language.encode([env.instruction])
    generator = torch.Generator().manual_seed(derive(seed, "noise of actions"))

    def act(observation: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal state, start
        batch = {name: torch.from_numpy(part)[None] for name, part in observation.items()}
        sight = sight_of(batch, words, policy.perception.sizes)
        with torch.no_grad():
            action, state = policy.act(sight, state, start, generator)
        start = torch.zeros(1, dtype=torch.bool)
        return action[0].numpy()

    return env, act
