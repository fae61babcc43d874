"""`engram demos`: recorded, stopped, continued, and refused."""

import json
import os
import re
import shutil
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram.agents.demonstrations import Demonstrations, DemonstrationWriter, set_aside
from engram.agents.demonstrations.recording import features_of, record
from engram.kernels.errors import DataError
from engram.launch import demos as module
from engram.launch.clone_build import build_world
from engram.launch.clone_config import compose_clone
from engram.launch.config import UsageError
from engram.launch.demos import RecorderKilledError
from engram.launch.files import read_json
from engram.launch.main import main

pytest.importorskip("mink", reason="needs engram[manipulation]")
pytest.importorskip("pyarrow", reason="needs engram[demonstrations]")

QUICK = ["demos", "demonstrations.objects=true", "task.settings.gap=[2,2]", "workers=1"]


SLOW = [
    (["demonstrations.episodes=0"], "1 or more"),
    (["demonstrations.episodes=many"], "whole numbers"),
    (["demonstrations.noise=-1"], "0 or more"),
    (["demonstrations.stray=-1"], "0 or more"),
    (["demonstrations.image=0"], "1 or more"),
    (["demonstrations.cameras=[left]"], "left"),
    (["task.settings.gap=[-1,2]"], "gap"),
    (["task.settings.colors=77"], "colors"),
    (["workers=0"], "1 or more"),
]


def episodes(folder: Path) -> list[dict[str, np.ndarray]]:
    source = Demonstrations(folder)
    try:
        return [source.read(number) for number in range(source.count)]
    finally:
        source.close()


def same(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(np.array_equal(x[name], y[name]) for name in x)
        for x, y in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes, recorded in one go; not to be changed."""
    out = tmp_path_factory.mktemp("demos") / "whole"
    assert main([*QUICK, "demonstrations.episodes=3", f"out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    """What `recorded` was recorded with."""
    (tree,) = compose_clone([*QUICK[1:], "demonstrations.episodes=3"]).trees.values()
    return tree


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("engram: ") and error.count("\n") == 1
    return error


def test_a_recording_that_was_stopped_goes_on_as_if_it_had_not(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"out={tmp_path / 'd'}"
    assert main([*QUICK, "demonstrations.episodes=1", out]) == 0
    assert "1 demonstrations in" in capsys.readouterr().out
    assert main([*QUICK, "demonstrations.episodes=3", out]) == 0
    assert same(episodes(tmp_path / "d"), episodes(recorded))


def test_episodes_differ_and_end_in_success(recorded: Path) -> None:
    a, b, c = episodes(recorded)
    assert not same([a], [b]) and not same([b], [c])
    for episode in (a, b, c):
        assert episode["decision"].max() == 1 and episode["shown"].max() == 1
        assert np.abs(episode["action"]).max() <= 1


def test_nothing_is_recorded_twice(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in recorded.rglob("*") if path.is_file()}
    assert main([*QUICK, "demonstrations.episodes=2", f"out={recorded}"]) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert f"3 demonstrations in {recorded}" in " ".join(capsys.readouterr().out.split())


def test_a_folder_may_have_a_number_for_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, "demonstrations.episodes=1", "out=3"]) == 0
    assert len(episodes(tmp_path / "3")) == 1


def test_what_waits_damaged_is_recorded_again(
    recorded: Path, tmp_path: Path, tree: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(recorded, folder)
    env = build_world(tree)
    writer = DemonstrationWriter(folder, features=features_of(env), robot_type=module.ROBOT)
    for number in (3, 4):
        writer.add(record(env, seed=0, number=number))
    writer._lock.release()  # as if killed
    path = folder / ".pending" / "episode-000003.zip"
    path.write_bytes(path.read_bytes()[:-100])
    again = [*QUICK, "demonstrations.episodes=4", f"out={folder}"]
    said = refused(capsys, *again)
    assert "is damaged" in said and f"remove {folder / '.pending'}: its episodes are" in said
    assert "set_aside" not in said  # the others would have numbers that are not theirs
    set_aside(folder)
    assert "lost an episode, and with it the order" in refused(capsys, *again)
    shutil.rmtree(folder / ".pending")
    assert main(again) == 0
    whole = tmp_path / "whole"
    assert main([*again[:-1], f"out={whole}"]) == 0
    assert same(episodes(folder), episodes(whole))


@pytest.mark.parametrize(
    "argument, said",
    [
        ("memory=gru", "memory decides nothing of a recording; allowed: task, "),
        ("policy.told=true", "policy.told decides nothing"),
        ("+variants.a=[demonstrations.noise=0]", "variants.a decides nothing"),
        ("demonstrations.folder=x", "demonstrations.folder is where to read from; allowed: out="),
        ("demonstrations.skip_damaged=true", "where to read from"),
    ],
)
def test_what_decides_nothing_is_refused(
    argument: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *QUICK, f"out={tmp_path / 'o'}", argument)
    assert not (tmp_path / "o").exists()


def test_a_recording_of_an_earlier_version_is_refused(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(recorded, tmp_path / "d"))
    facts = read_json(folder / module.RECORDING)
    del facts["format"]
    (folder / module.RECORDING).write_text(json.dumps(facts))
    said = refused(capsys, *QUICK, "demonstrations.episodes=4", f"out={folder}")
    assert "recording.json is of an earlier version; allowed: format 2, recorded again" in said


@pytest.mark.parametrize("content", ["[]", "3", "null", '"a"'])
def test_a_damaged_note_on_a_recording_is_refused(
    content: str, tmp_path: Path, tree: dict[str, Any]
) -> None:
    (tmp_path / module.RECORDING).write_text(content)
    with pytest.raises(DataError, match=r"recording\.json is damaged: it holds no JSON object"):
        module._claim(tmp_path, tree, begun=True)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"demonstrations": {"seed": 1}}, "seed is 1; allowed: as the recording"),
        ({"demonstrations": {"noise": 0.2}}, "noise is 0.2"),
        ({"demonstrations": {"stray": 0.1}}, "stray is 0.1"),
        ({"demonstrations": {"cameras": ["wrist"]}}, "cameras is ['wrist']"),
        ({"task": {"settings": {"colors": 3, "gap": [4, 4]}}}, "task.settings.gap is [4, 4]"),
        ({"task": {"name": "shell_game"}}, "task.name is 'shell_game'"),
    ],
)
def test_recordings_are_not_mixed(
    change: dict[str, dict[str, Any]], said: str, recorded: Path, tree: dict[str, Any]
) -> None:
    module._claim(recorded, tree, begun=True)
    other = {name: {**tree[name], **change.get(name, {})} for name in ("task", "demonstrations")}
    with pytest.raises(UsageError, match=re.escape(said)):
        module._claim(recorded, other, begun=True)


def test_another_recording_is_refused_and_nothing_added(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (recorded / "meta/info.json").read_bytes()
    arguments = ["demonstrations.noise=0.2", "demonstrations.episodes=4", f"out={recorded}"]
    assert "noise is 0.2" in refused(capsys, *QUICK, *arguments)
    assert (recorded / "meta/info.json").read_bytes() == before


def test_demonstrations_of_others_are_not_continued(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(recorded, tmp_path / "d")
    (tmp_path / "d" / module.RECORDING).unlink()
    error = refused(capsys, *QUICK, "demonstrations.episodes=4", f"out={tmp_path / 'd'}")
    assert "engram did not record" in error


def test_what_was_recorded_is_written_down(recorded: Path) -> None:
    facts = read_json(recorded / module.RECORDING)
    assert facts["task.name"] == "remember_color" and facts["task.settings.gap"] == [2, 2]
    assert facts["noise"] == 0.1 and facts["stray"] == 0.06 and facts["seed"] == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "arguments, said",
    [
        (["task=remember_colour"], "did you mean remember_color"),
        (["task=[remember_color,shell_game]"], "allowed: one"),
        (["demonstrations.episode=3"], "episodes"),
        (["task=put_back", "+task.settings.marks=three"], "marks is 'three'; allowed: 2 to 6"),
        (["task=put_back", "+task.settings.marks=2.5"], "marks is 2.5; allowed: 2 to 6"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)  # a second each
            for case in SLOW
        ),
    ],
)
def test_wrong_settings_are_refused_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [a for a in QUICK if a.partition("=")[0] != arguments[0].partition("=")[0]]
    if "cameras" in arguments[0]:
        quick.remove("demonstrations.objects=true")
    assert said in refused(capsys, *quick, *arguments, f"out={tmp_path / 'd'}")
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.slow
def test_how_many_processes_record_changes_nothing(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    arguments = [a for a in QUICK if a != "workers=1"]
    out = tmp_path / "d"
    assert main([*arguments, "workers=2", "demonstrations.episodes=3", f"out={out}"]) == 0
    assert same(episodes(out), episodes(recorded))


class Pool(ProcessPoolExecutor):
    """Works at once, and counts what waits."""

    def __init__(self) -> None:
        self.waiting = self.most = 0

    def submit(self, fn: Any, /, *arguments: Any, **named: Any) -> Any:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        done: Any = Future()
        done.set_result(fn(*arguments, **named))
        done.result = lambda timeout=None: self.leave(done)
        return done

    def leave(self, done: Future[Any]) -> Any:
        self.waiting -= 1
        return Future.result(done)


def test_few_batches_wait_and_come_in_order() -> None:
    pool = Pool()
    numbers = range(2, 100)
    assert list(module._ahead(pool, list, 3, numbers)) == list(numbers)
    assert pool.most == 3 and pool.waiting == 0


def die(make: Any, numbers: range, **settings: Any) -> list[Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


@pytest.mark.slow
def test_a_recorder_that_is_killed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_record", die)
    with (
        pytest.raises(RecorderKilledError, match="goes on where it was"),
        module._recorder(int, {"seed": 0, "noise": 0.0, "stray": 0.0}, 2) as each,  # type: ignore[arg-type]
    ):
        list(each(range(3)))
