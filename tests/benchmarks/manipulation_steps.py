"""Steps per second of the manipulation tasks on one core, and how surely their oracles succeed.

Needs engram[manipulation]. `python tests/benchmarks/manipulation_steps.py` prints rates,
`--oracle 200` the success of each oracle over so many seeds, and `--demonstrations 300` how long
that many episodes of each task take on one core, pictures included. Rates are by processor time.
"""

import argparse
import importlib.util
import statistics
import time
from typing import Any

import numpy as np
from measure import Limit, Row, markdown, not_run

from engram.envs.manipulation import TASKS, ManipulationEnv, Oracle

SIZE = 64
TARGET = 800
SECONDS = 60
WIDEST: dict[str, dict[str, Any]] = {
    "remember_color": {"colors": 9},
    "shell_game": {"cups": 4, "swaps": 5},
    "put_back": {"marks": 6},
    "match_after_delay": {"gap": 60},
    "buttons_in_order": {"buttons": 6, "length": 6},
    "count_presses": {"most": 8},
    "search_boxes": {"boxes": 4},
    "friction_probe": {"pushes": 1},
}


def record(env: ManipulationEnv, episodes: int) -> list[tuple[int, list[np.ndarray]]]:
    """Return seeds and actions of the oracle, to be replayed without it."""
    oracle, tapes = Oracle(), []
    for seed in range(episodes):
        env.reset(seed=seed)
        tape, done = [], False
        while not done:
            tape.append(oracle.act(env))
            done = any(env.step(tape[-1])[2:4])
        tapes.append((seed, tape))
    return tapes


def replay(env: ManipulationEnv, tapes: list[tuple[int, list[np.ndarray]]]) -> float:
    """Steps per second of processor time, resets included."""
    begin = time.process_time()
    for seed, tape in tapes:
        env.reset(seed=seed)
        for action in tape:
            env.step(action)
    return sum(len(tape) for _, tape in tapes) / (time.process_time() - begin)


def bare(env: ManipulationEnv, tapes: list[tuple[int, list[np.ndarray]]]) -> float:
    """The same physics and pictures with nothing around them: what MuJoCo alone takes."""
    mujoco, world, camera = env.world.mujoco, env.world, env.senses.cameras
    from engram.envs.manipulation.camera import shared_camera
    from engram.envs.manipulation.scene import SUBSTEPS

    steps = sum(len(tape) for _, tape in tapes)
    env.reset(seed=0)
    begin = time.process_time()
    for _ in range(steps):
        mujoco.mj_step(world.model, world.data, nstep=SUBSTEPS)
        for name in camera:
            shared_camera(SIZE).picture(world, name)
    return steps / (time.process_time() - begin)


def rates(task: str, rounds: int) -> list[Row]:
    """Measure a task with and without pictures."""
    rows = []
    for cameras, limit in ((("top",), Limit("≥", TARGET)), ((), None)):
        env = ManipulationEnv(task, cameras=cameras, size=SIZE, objects=not cameras)
        tapes = record(env, 8)
        pairs = [(replay(env, tapes), bare(env, tapes)) for _ in range(rounds)]
        mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        what = f"one {SIZE} px picture" if cameras else "objects, no picture"
        rows.append(
            Row(
                f"{task}, {what} [steps/s and core]",
                f"{mine:,.0f}",
                f"{other:,.0f}, bare MuJoCo",
                None,
                mine / other,
                str(limit or ""),
                limit.holds(mine) if limit else None,
            )
        )
    return rows


def success(task: str, seeds: int) -> Row:
    """Measure the oracle at default and at the widest settings."""
    shares = []
    for settings in ({}, WIDEST[task]):
        env, oracle, solved = ManipulationEnv(task, cameras=(), **settings), Oracle(), 0
        for seed in range(seeds):
            env.reset(seed=seed)
            info, done = {"success": 0.0}, False
            while not done:
                _, _, terminated, truncated, info = env.step(oracle.act(env))
                done = terminated or truncated
            solved += info["success"] == 1
        shares.append(solved / seeds)
    found = " and ".join(f"{share:.3f}" for share in shares)
    quantity = f"{task}, oracle over {seeds} seeds, default and widest settings"
    limit = Limit("≥", 0.98)
    return Row(quantity, found, "", None, None, str(limit), limit.holds(min(shares)))


def demonstrations(task: str, episodes: int) -> Row:
    """Time episodes of the oracle with pictures."""
    env = ManipulationEnv(task, size=SIZE, objects=True)
    begin = time.process_time()
    record(env, episodes)
    spent = time.process_time() - begin
    limit = Limit("≤", 2 * SECONDS)  # two cores for a minute
    quantity = f"{task}, {episodes} demonstrations [core seconds]"
    return Row(quantity, f"{spent:.1f}", "", None, None, str(limit), limit.holds(spent))


def rows(rounds: int) -> list[Row]:
    """Measure the rates of every task."""
    for package in ("mujoco", "mink"):
        if importlib.util.find_spec(package) is None:
            return [not_run("manipulation", "not run", f"{package} is not installed", "")]
    return [row for task in TASKS for row in rates(task, rounds)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--oracle", type=int, default=0, metavar="SEEDS")
    parser.add_argument("--demonstrations", type=int, default=0, metavar="EPISODES")
    arguments = parser.parse_args()
    if arguments.oracle:
        print(markdown([success(task, arguments.oracle) for task in arguments.tasks]))
    elif arguments.demonstrations:
        found = [demonstrations(task, arguments.demonstrations) for task in arguments.tasks]
        print(markdown(found))
    else:
        table = [row for task in arguments.tasks for row in rates(task, arguments.rounds)]
        print(markdown(table))
