"""`engram film`: films of the scripted policy and of a run that can be read again."""

from pathlib import Path

import numpy as np
import pytest

from engram.envs.manipulation import ManipulationEnv, Oracle
from engram.launch.film import encode, play
from engram.launch.main import main

pytest.importorskip("mink", reason="needs engram[manipulation]")
av = pytest.importorskip("av", reason="needs engram[demonstrations]")
Image = pytest.importorskip("PIL.Image", reason="needs engram[demonstrations]")

SHORT = ["task.settings.gap=[1,1]", "demonstrations.objects=true"]


def frames(path: Path) -> list[np.ndarray]:
    """What is shown at every tenth of a second; a GIF holds equal pictures in a row once."""
    if path.suffix == ".gif":
        with Image.open(path) as film:
            found = []
            for number in range(film.n_frames):
                film.seek(number)
                picture = np.asarray(film.convert("RGB"))
                found += [picture] * round(film.info["duration"] / 100)
            return found
    with av.open(str(path)) as film:
        return [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_film_has_the_frames_that_were_given(suffix: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    given = [
        np.stack([np.roll(np.tile(ramp, (48, 1)), 9 * i, 1)] * 3, -1) for i in range(5)
    ]  # a grey ramp that moves
    path = tmp_path / f"film{suffix}"
    with path.open("wb") as file:
        encode(file, given, suffix)
    found = frames(path)
    assert len(found) == 5
    for a, b in zip(given, found, strict=True):
        assert a.shape == b.shape
        assert np.abs(a.astype(int) - b.astype(int)).mean() < 8


def test_the_scripted_policy_is_filmed_to_its_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "film.gif"
    assert main(["film", *SHORT, "seed=3", f"out={out}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Success: yes; first choice: right." in said
    env = ManipulationEnv("remember_color", cameras=(), objects=True, gap=[1, 1], colors=3)
    oracle = Oracle(seed=3)
    _, info = env.reset(seed=3)
    steps, ended = 0, False
    while not ended:
        _, _, terminated, truncated, info = env.step(oracle.act(env))
        steps, ended = steps + 1, terminated or truncated
    assert info["success"]
    found = frames(out)
    assert f"{len(found)} frames" in said and len(found) == steps + 1  # the first is at the reset
    assert found[0].shape == (480, 480, 3) and found[0].std() > 10  # a scene, no blank
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_folder_of_a_film_is_made(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "film.gif"
    assert main(["film", *SHORT, f"out={out}"]) == 0
    assert len(frames(out)) > 1


@pytest.mark.parametrize("place", ["file/film.gif", "folder.gif"])
def test_a_place_that_cannot_be_written_is_refused_before_the_episode(
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.gif").mkdir()
    monkeypatch.setattr("engram.launch.film.play", lambda *_: pytest.fail("it was played"))
    assert main(["film", *SHORT, f"out={tmp_path / place}"]) == 2
    error = capsys.readouterr().err
    assert place.partition("/")[0] in error
    assert error.startswith("engram: ") and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["film.gif", "film.mp4"])
def test_a_run_is_filmed(
    name: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = study / "remember_color" / "gru" / "seed0", tmp_path / name
    assert main(["film", f"run={run}", "seed=1", f"out={out}"]) == 0
    said = capsys.readouterr().out
    words = " ".join(said.split())  # where a line breaks depends on the length of the path
    assert f"{len(frames(out))} frames" in words and "Success: " in words
    first = np.stack(frames(out)).astype(int)
    assert main(["film", f"run={run}", "seed=1", f"out={out}"]) == 0
    assert capsys.readouterr().out == said  # everything follows from the seed
    again = np.stack(frames(out)).astype(int)
    assert main(["film", f"run={run}", "seed=2", f"out={out}"]) == 0
    other = np.stack(frames(out)).astype(int)
    # Sums round differently by where numbers lie in memory. An action that is 1e-6 off moves an
    # edge by a pixel, which then differs by 50; on the average pictures differ by 0.03, and those
    # of another seed by 4.
    assert np.abs(again - first).mean() < 0.3
    shown = min(len(first), len(other))
    assert np.abs(other[:shown] - first[:shown]).mean() > 1


def test_equal_pictures_in_a_row_are_shown_as_long_as_they_last(tmp_path: Path) -> None:
    still, other = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    path = tmp_path / "still.gif"
    with path.open("wb") as file:
        encode(file, [still, still, still, other, other], ".gif")
    found = np.stack(frames(path))
    assert np.array_equal(found, np.stack([still, still, still, other, other]))


def test_play_stops_where_the_episode_ends() -> None:
    env = ManipulationEnv(
        "remember_color", cameras=(), objects=True, render_mode="rgb_array", gap=[1, 1]
    )
    still = np.zeros(env.action_space.shape or (), dtype=np.float32)
    pictures, info = play(env, lambda _: still, seed=0)
    assert len(pictures) == env.steps + 1 == env.task.limit + 1
    assert not info["success"] and np.isnan(info["first_choice_correct"])


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["out=film.avi"], ".mp4 or .gif"),
        (["seed=-1"], "seed is '-1'"),
        (["seed=two"], "seed is 'two'"),
        (["task=put_bakc"], "did you mean put_back"),
        (["task=[put_back,shell_game]"], "allowed: one"),
        (["run=nowhere"], "nowhere"),
        (["task=put_back", "run"], "argument 'run' names nothing; allowed: run=value"),
        (["task=put_back", "run="], "argument 'run=' names nothing; allowed: run=value"),
        (["out="], "argument 'out=' names nothing; allowed: out=value"),
        (["run=nowhere", "task=put_back"], "'task=put_back' is a key of the run already"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["film", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("engram: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
