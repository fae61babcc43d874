import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from engram.envs import ballet_view
from engram.envs.ballet import CENTRE, COMPASS, DANCES, STAGES, Ballet, Dancer
from engram.envs.ballet_view import BOARD, COLORS, SHAPES, template
from engram.envs.vector import Stream
from engram.kernels.errors import InvalidValueError

ROOT = Path(__file__).parents[2]
RECORDED = ROOT.parent / "shared" / "data" / "golden"
TWIN = Path(__file__).parent / "golden" / "ballet_small.json"
WATCH = 34
"""First step that shows the instruction of two dances with a delay of 2."""
PAIR = [
    Dancer(2, 8, "zee", "h", "peach", target=True),  # to the NE
    Dancer(5, 2, "circle_cw", "u", "blue"),  # to the W
]
ACTIONS = list(COMPASS)
NE, W = ACTIONS.index("NE"), ACTIONS.index("W")


def recorded(name: str) -> Path:
    if not (RECORDED / name).exists():
        pytest.skip(f"../shared/data/golden/{name} is absent: it holds the original's episodes")
    return RECORDED / name


def stage(episode: dict, pixels: bool = False) -> Ballet:
    """Environment of a recorded episode, before its dancers take their places."""
    settings = {key: episode[key] for key in ("delay", "max_steps")}
    return Ballet(1, dances=episode["num_dancers"], pixels=pixels, **settings)


def cast(episode: dict) -> list[Dancer]:
    keys = ("row", "col", "dance", "shape", "color", "target")
    return [Dancer(*(dancer[key] for key in keys)) for dancer in episode["dancers"]]


def boards(episode: dict):
    """Every frame's board; an unchanged one is recorded as null."""
    board: list[str] = []
    for frame in episode["frames"]:
        board = frame["board"] or board
        yield board


def crop(board: list[str], row: int, column: int, dancers: list[dict]) -> np.ndarray:
    """View that a board implies, cell by cell."""
    view = np.zeros((3, BOARD, BOARD), np.uint8)
    kinds = {" ": 1, "#": 2, "A": 3}
    looks = {
        dancer["char"]: (4, 1 + SHAPES.index(dancer["shape"]), 1 + [*COLORS].index(dancer["color"]))
        for dancer in dancers
    }
    for y in range(BOARD):
        for x in range(BOARD):
            r, c = row + y - 5, column + x - 5
            if 0 <= r < BOARD and 0 <= c < BOARD:
                view[:, y, x] = looks.get(board[r][c]) or (kinds[board[r][c]], 0, 0)
    return view


def check_episode(episode: dict) -> None:
    env = stage(episode)
    observation = env.place([cast(episode)])
    row, column = 5, 5
    for t, (frame, board) in enumerate(zip(episode["frames"], boards(episode), strict=True)):
        reward, done = torch.zeros(1), torch.zeros(1)
        if t:
            action = episode["actions"][t - 1]
            _, reward, done, truncated, info = env.step([action])
            observation = info["final_obs"]
            assert not truncated.any()
            found = [(r, c) for r in range(BOARD) for c in range(BOARD) if board[r][c] == "A"]
            # A dancer is drawn over the agent who touches it.
            move = COMPASS[ACTIONS[action]]
            row, column = found[0] if found else (row + move[0], column + move[1])
        name = ("watch", *DANCES)[int(observation["instruction"])]
        now = (frame["instruction"], frame["reward"], frame["done"])
        assert (t, name, float(reward), bool(done)) == (t, *now)
        expected = crop(board, row, column, episode["dancers"])
        np.testing.assert_array_equal(observation["view"][0].numpy(), expected, f"frame {t}")


def images(episode: dict) -> list[np.ndarray]:
    env = stage(episode, pixels=True)
    frames = [env.place([cast(episode)])]
    for action in episode["actions"]:
        frames.append(env.step([action])[4]["final_obs"])
    return [frame["view"][0].numpy() for frame in frames]


@pytest.mark.parametrize("index", range(9))
def test_episodes_of_the_original_replay_exactly(index: int):
    check_episode(json.loads(recorded("ballet.json").read_text())[index])


def test_images_of_the_original_are_equal_to_the_pixel():
    episodes = json.loads(recorded("ballet.json").read_text())
    with np.load(recorded("ballet_pixels.npz")) as archive:
        for index, episode in enumerate(episodes):
            ours = images(episode)
            for t in (0, 5, len(ours) - 1):
                theirs = archive[f"episode{index}_t{t}"]
                np.testing.assert_array_equal(ours[t], theirs, f"episode {index}, frame {t}")


@pytest.mark.parametrize("index", range(3))
def test_episodes_of_ours_replay_exactly(index: int):
    episode = json.loads(TWIN.read_text())[index]
    check_episode(episode)
    assert [zlib.crc32(image.tobytes()) for image in images(episode)] == episode["image_crc32"]


def write_twin() -> None:
    """Record three short episodes of ours: to the target, to another, and at random until time.

    For machines without the original's recordings. Run `python tests/envs/test_ballet.py` after
    a deliberate change of the rules, and look at the difference.
    """
    episodes = []
    for seed, (dances, max_steps, goal) in enumerate([(1, 40, 0), (3, 60, 2), (2, 45, None)]):
        env = Ballet(1, dances=dances, delay=2, max_steps=max_steps, seed=seed)
        worlds, generator = env.worlds, torch.Generator().manual_seed(seed)
        # The target is set, so that the three endings are those wanted.
        env.worlds = worlds = worlds._replace(target=torch.zeros_like(worlds.target))
        dancers = [
            {
                "char": "BCD"[d],
                "row": int(worlds.home[0, d]) // BOARD,
                "col": int(worlds.home[0, d]) % BOARD,
                "dance": list(DANCES)[int(worlds.dance[0, d])],
                "shape": SHAPES[int(worlds.look[0, d]) // len(COLORS)],
                "color": list(COLORS)[int(worlds.look[0, d]) % len(COLORS)],
                "target": d == 0,
            }
            for d in range(dances)
        ]
        heading = None
        if goal is not None:
            side = (dancers[goal]["row"] - 5, dancers[goal]["col"] - 5)
            heading = list(COMPASS.values()).index((side[0] // 3, side[1] // 3))
        frames, actions, last = [], [], None
        reward, done, observation = 0.0, False, env.observe()
        while True:
            board = [list("#" + " " * 9 + "#") for _ in range(BOARD)]
            board[0], board[-1] = ["#"] * BOARD, ["#"] * BOARD
            board[int(env.worlds.agent) // BOARD][int(env.worlds.agent) % BOARD] = "A"
            for d, cell in enumerate(env.dancer_cells()[0].tolist()):
                board[cell // BOARD][cell % BOARD] = "BCD"[d]
            rows = ["".join(row) for row in board]
            name = ("watch", *DANCES)[int(observation["instruction"])]
            frame = {"board": rows if rows != last else None, "instruction": name}
            frames.append({**frame, "reward": reward, "done": done})
            last = rows
            if done:
                break
            random = int(torch.randint(8, (), generator=generator))
            actions.append(random if heading is None else heading)
            step = env.advance(torch.tensor(actions[-1:]))
            reward, done, observation = float(step.reward), bool(step.terminated), step.observation
        settings = {"num_dancers": dances, "delay": 2, "max_steps": max_steps}
        episode = {**settings, "dancers": dancers, "actions": actions, "frames": frames}
        episode["image_crc32"] = [zlib.crc32(image.tobytes()) for image in images(episode)]
        episodes.append(episode)
    TWIN.write_text(json.dumps(episodes).replace('{"board"', '\n{"board"') + "\n")


def walk(env: Ballet, action: int, steps: int):
    """Repeat an action in every world and return the last step."""
    for _ in range(steps - 1):
        env.step(torch.full((env.num_envs,), action))
    return env.step(torch.full((env.num_envs,), action))


def pair(count: int = 1, **settings) -> Ballet:
    env = Ballet(count, delay=2, **settings)
    env.place([PAIR] * count)
    return env


@pytest.mark.parametrize("delay", [16, 48])
@pytest.mark.parametrize(("dances", "at_16", "at_48"), [(2, 62, 126), (4, 124, 252), (8, 248, 504)])
def test_the_instruction_appears_after_all_dances(dances, at_16, at_48, delay):
    env = Ballet(1, dances=dances, delay=delay)
    first = at_16 if delay == 16 else at_48
    observation, _ = env.reset()
    for _ in range(first):
        assert observation["instruction"].item() == 0
        observation, *_ = env.step([0])
    named = env.worlds.dance[0, env.worlds.target[0]] + 1
    assert observation["instruction"].item() == named


def test_dancers_never_share_a_place_dance_shape_or_colour():
    worlds = Ballet(1, dances=8).draw(2000)
    shape, color = worlds.look // len(COLORS), worlds.look % len(COLORS)
    for drawn, size in ((worlds.home, 8), (worlds.dance, 13), (shape, 15), (color, 19)):
        ordered = drawn.sort(dim=1).values
        assert (ordered[:, 1:] > ordered[:, :-1]).all()
        assert len(drawn[:, 0].unique()) == size
    assert (worlds.target.bincount() / 2000 - 1 / 8).abs().max() < 0.03


def test_walls_block_without_sliding():
    env = pair(8, max_steps=1000)
    corner = 1 * BOARD + 1
    env.worlds = env.worlds._replace(time=torch.full((8,), WATCH), agent=torch.full((8,), corner))
    env.step(torch.arange(8))
    east, southeast, south = corner + 1, corner + BOARD + 1, corner + BOARD
    assert env.worlds.agent.tolist() == [corner, corner, east, southeast, south, *[corner] * 3]


def test_the_agent_waits_until_the_step_after_the_instruction():
    env = pair()
    walk(env, 0, WATCH)
    assert env.worlds.agent.item() == CENTRE
    env.step([0])
    assert env.worlds.agent.item() == CENTRE - BOARD


@pytest.mark.parametrize(("action", "success"), [(NE, 1.0), (W, 0.0)])
def test_touching_a_dancer_ends_the_episode(action: int, success: float):
    env = pair()
    _, _, terminated, _, info = walk(env, action, WATCH + 2)
    assert not terminated.any()
    assert info["success_given_choice"].isnan().all()
    _, reward, terminated, truncated, info = env.step([action])
    assert (reward.item(), terminated.item(), truncated.item()) == (success, True, False)
    assert info["success"].item() == info["success_given_choice"].item() == success
    assert info["chosen"].item() == 1
    # The dancer covers the agent.
    assert info["final_obs"]["view"][0, 0, 5, 5] == ballet_view.DANCER


def test_running_out_of_time_is_a_termination():
    env = pair(max_steps=40)
    _, _, terminated, _, _ = walk(env, 0, 39)
    assert not terminated.any()
    _, reward, terminated, truncated, info = env.step([0])
    assert (reward.item(), terminated.item(), truncated.item()) == (0, True, False)
    assert (info["success"].item(), info["chosen"].item()) == (0, 0)
    assert info["success_given_choice"].isnan().all()
    assert not env.truncates


@pytest.mark.parametrize("dance", DANCES)
def test_a_dance_returns_home_and_stays_around_it(dance: str):
    path = np.cumsum([COMPASS[move] for move in DANCES[dance].split()], axis=0)
    assert path.shape == (16, 2)
    assert np.abs(path).max() == 1
    assert (path[-1] == 0).all()


def test_paired_dances_mirror_each_other():
    path = {name: np.array([COMPASS[m] for m in moves.split()]) for name, moves in DANCES.items()}
    for name in ("circle", "plus", "times"):
        np.testing.assert_array_equal(path[f"{name}_cw"], path[f"{name}_ccw"] * [1, -1])
    np.testing.assert_array_equal(path["diagonal_uldr"], path["diagonal_urdl"] * [1, -1])
    np.testing.assert_array_equal(path["up_and_down"], -path["left_and_right"][:, ::-1])
    np.testing.assert_array_equal(path["chevron_down"], -path["chevron_up"])
    strokes = {(-1, -1), (-1, 0), (-1, 1), (0, 0), (1, -1), (1, 0), (1, 1)}
    assert {(y, x) for y, x in path["zee"].cumsum(0).tolist()} == strokes
    assert len({moves.tobytes() for moves in path.values()}) == 13


def test_a_dancer_out_of_the_crop_leaves_no_trace():
    env = pair(2)
    far = torch.tensor([9 * BOARD + 1, 9 * BOARD + 9])
    env.worlds = env.worlds._replace(agent=far, time=torch.full((2,), WATCH))
    view = env.observe()["view"]
    # Seen from the lower left, the upper right dancer is 7 rows and 7 columns away.
    assert (view[:, 0] == ballet_view.DANCER).sum((1, 2)).tolist() == [1, 0]
    assert (view[:, 1:] > 0).flatten(1).sum(1).tolist() == [2, 0]
    assert (view[:, 0, 6, 5] == ballet_view.WALL).all()
    assert (view[:, 0, 7:] == ballet_view.OUTSIDE).all()


def test_every_look_is_distinct():
    assert len({template(shape).numpy().tobytes() for shape in SHAPES}) == len(SHAPES) == 15
    assert len(set(COLORS.values())) == 19
    for canvas in (ballet_view.symbols(), ballet_view.pixels()):
        assert len(canvas.tiles.unique(dim=0)) == 15 * 19


def test_shapes_that_no_recording_shows_are_drawn_as_named():
    assert (template("inverse_plus") == ~template("plus")).all()
    assert (template("inverse_ex") == ~template("ex")).all()
    assert (template("upside_down_u") == template("u").flip(0)).all()


def test_equal_seeds_give_equal_worlds():
    actions = torch.randint(8, (120, 16), generator=torch.Generator().manual_seed(0))

    def history(env: Ballet) -> torch.Tensor:
        frames = [env.reset(seed=3)[0]["view"]]
        return torch.stack(frames + [env.step(action)[0]["view"] for action in actions])

    first = history(Ballet(16, delay=2, seed=1))
    assert first.equal(history(Ballet(16, delay=2, seed=2)))
    other = Ballet(16, delay=2).reset(seed=4)[0]["view"]
    assert not first[0].equal(other)


def test_a_world_restarts_in_the_step_that_ends_it():
    env = pair(2)
    env.worlds = env.worlds._replace(time=torch.tensor([0, WATCH + 1]))
    stream = Stream(env)
    stream.step(torch.tensor([W, W]))
    stream.step(torch.tensor([W, W]))
    moved = stream.step(torch.tensor([W, W]))
    assert moved.start.tolist() == moved.terminated.tolist() == [False, True]
    assert env.worlds.time.tolist() == [3, 0]
    assert env.worlds.agent.tolist() == [CENTRE, CENTRE]
    assert moved.observation["instruction"].tolist() == [0, 0]
    named = list(DANCES).index(PAIR[0].dance) + 1
    assert moved.final_observation["instruction"].tolist() == [0, named]
    assert moved.final_observation["view"][0].equal(moved.observation["view"][0])
    assert moved.final_observation["view"][1, 0, 5, 5] == ballet_view.DANCER
    assert moved.observation["view"][1, 0, 5, 5] == ballet_view.AGENT


@pytest.mark.parametrize("pixels", [False, True])
def test_observations_lie_in_their_space_and_keep_their_values(pixels: bool):
    env = Ballet(4, delay=2, pixels=pixels, seed=1)
    observation, _ = env.reset()
    kept = {key: value.clone() for key, value in observation.items()}
    for _ in range(60):
        later, *_ = env.step(torch.randint(8, (4,)))
        assert env.observation_space.contains({k: v.numpy() for k, v in later.items()})
    assert all(observation[key].equal(kept[key]) for key in kept)
    assert env.action_space.contains(np.zeros(4, np.int64))


@pytest.mark.parametrize("dances", [1, 2, 8])
def test_chance_is_one_in_the_number_of_dancers(dances: int):
    env = Ballet(1, dances=dances)
    assert (env.chance, env.optimum) == (1 / dances, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dances": 0}, "dances is 0; allowed: 1 to 8"),
        ({"dances": 9}, "dances is 9; allowed: 1 to 8"),
        ({"delay": 0}, "delay is 0; allowed: 1 or more"),
        ({"delay": 2, "max_steps": WATCH + 2}, "max_steps is 36; allowed: 37 or more"),
        ({"delay": 600}, "max_steps is 1024; allowed: 1233 or more"),
        ({"num_envs": 0}, "num_envs is 0; allowed: 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str):
    with pytest.raises(InvalidValueError, match=message):
        Ballet(**{"num_envs": 1, **settings})


@pytest.mark.parametrize(
    ("casts", "message"),
    [
        ([PAIR, PAIR], "number of casts is 2; allowed: 1"),
        ([PAIR[:1]], "places of a cast is .*; allowed: 2 distinct ones"),
        ([[PAIR[0], PAIR[0]]], "places of a cast is .*; allowed: 2 distinct ones"),
        ([[PAIR[0], PAIR[1]._replace(target=True)]], "allowed: exactly one"),
        ([[PAIR[0], PAIR[1]._replace(row=5, column=5)]], r"place is \(5, 5\); allowed: \(2, 2\)"),
        ([[PAIR[0], PAIR[1]._replace(dance="waltz")]], "dance is 'waltz'; allowed: circle_cw"),
        ([[PAIR[0], PAIR[1]._replace(shape="star")]], "shape is 'star'; allowed: triangle"),
        ([[PAIR[0], PAIR[1]._replace(color="mauve")]], "color is 'mauve'; allowed: red"),
    ],
)
def test_casts_that_cannot_be_are_refused(casts: list, message: str):
    with pytest.raises(InvalidValueError, match=message):
        Ballet(1).place(casts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pixels", [False, True])
def test_a_gpu_shows_what_the_cpu_shows(pixels: bool):
    casts = [[PAIR[0], PAIR[1]._replace(row=row, column=column)] for row, column in STAGES[3:]]
    host = Ballet(len(casts), delay=2, pixels=pixels)
    device = Ballet(len(casts), delay=2, pixels=pixels, device="cuda")
    host.place(casts)
    device.place(casts)
    for t in range(WATCH + 3):
        action = torch.randint(8, (len(casts),), generator=torch.Generator().manual_seed(t))
        ours, theirs = host.advance(action), device.advance(action.cuda())
        for key in ours.observation:
            assert ours.observation[key].equal(theirs.observation[key].cpu())
        assert ours.reward.equal(theirs.reward.cpu())


if __name__ == "__main__":
    write_twin()
