"""Run folders: damaged, shared, mixed, or left behind by a rejected command."""

import json
import shutil
from pathlib import Path

import pytest

from engram.kernels.errors import DataError, EngramError
from engram.launch.folder import locked, read_metrics
from engram.launch.main import main

QUICK = ["env=chain_bit", "env.length=6", "agent.rollout=16", "agent.chunk=8", "num_envs=8"]
QUICK += ["evaluation.episodes=16", "evaluation.num_envs=8", "policy.width=16", "device=cpu"]
TRAIN = ["train", *QUICK, "memory=none", "seeds=1", "budget=256"]

CONFIGS = ["{}", "[]", "null", '{"format": 1, "memory": "none", "seed": 0, "tree": 5}', "{", "é"]
METRICS = [b"[1]\n", b"5\n", b'{"steps": "x"}\n', b"\xff\xfe\n", b"{}\n", b"nonsense\n"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "r"
    assert main([*TRAIN, f"out={out}"]) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    shutil.copytree(finished, tmp_path / "r")
    return tmp_path / "r" / "none" / "seed0"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("engram: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("content", CONFIGS)
def test_a_damaged_configuration_is_refused(
    content: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.json").write_text(content, encoding="utf-16" if content == "é" else "utf-8")
    out = f"out={run.parents[1]}"
    for command in ([*TRAIN, out, "resume=true"], ["eval", out]):
        assert "damaged" in refused(capsys, *command)
    assert (run / "config.json").read_bytes()


def test_a_checkpoint_without_its_configuration_is_not_continued(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.json").unlink()
    assert "missing" in refused(capsys, *TRAIN, f"out={run.parents[1]}", "resume=true")


@pytest.mark.parametrize("content", METRICS)
def test_a_damaged_line_of_metrics_is_named_and_nothing_is_lost(
    content: bytes, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "metrics.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(damaged := first + content + b"".join(rest))
    error = refused(capsys, *TRAIN, f"out={run.parents[1]}", "resume=true")
    assert "metrics.jsonl, line 2 is damaged" in error
    assert path.read_bytes() == damaged


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"steps": 1}\n{"steps": 2}\n{"ste')
    assert [entry["steps"] for entry in read_metrics(tmp_path)] == [1, 2]
    path.write_text('{"steps": 1}\n{"ste\n')
    with pytest.raises(DataError, match="line 2"):
        read_metrics(tmp_path)


def test_a_finished_run_without_metrics_still_reports(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert main([*TRAIN, f"out={run.parents[1]}", "resume=true"]) == 0


def test_a_rejected_setting_leaves_the_folder_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"out={tmp_path / 'x'}"
    assert "agent.chunk is 7" in refused(capsys, *TRAIN, "agent.chunk=7", out)
    assert main([*TRAIN, out]) == 0


def test_two_processes_do_not_write_to_one_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path / "x/none/seed0"):
        assert "another process" in refused(capsys, *TRAIN, f"out={tmp_path / 'x'}")
    assert main([*TRAIN, f"out={tmp_path / 'x'}"]) == 0


def test_a_folder_that_cannot_be_made_stops_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / ("long" * 100), Path("/proc/engram")):
        assert str(out)[:20] in refused(capsys, *TRAIN, f"out={out}")


def test_eval_keeps_different_tasks_apart(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "env.length=3", f"out={tmp_path / 'other'}"]) == 0
    capsys.readouterr()
    assert main(["eval", f"out={tmp_path}", "episodes=8"]) == 0
    printed = capsys.readouterr().out
    assert "r/none" in printed and "other/none" in printed
    shutil.copytree(tmp_path / "other/none/seed0", run.parent / "seed1")
    assert "different settings" in refused(capsys, "eval", f"out={tmp_path}", "episodes=8")
    assert "episodes is '²'" in refused(capsys, "eval", f"out={tmp_path}", "episodes=²")


def test_a_diverging_run_stops_and_keeps_its_last_checkpoint(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "checkpoint.safetensors").read_bytes()
    config = json.loads((run / "config.json").read_text())
    config["tree"]["agent"]["learning_rate"] = 1e30
    (run / "config.json").write_text(json.dumps(config))
    more = ["agent.learning_rate=1e30", "budget=2048", f"out={run.parents[1]}", "resume=true"]
    error = refused(capsys, *TRAIN, *more)
    assert "steps; allowed: finite numbers" in error
    assert (run / "checkpoint.safetensors").read_bytes() == before


def test_an_environment_that_lacks_a_package_stops_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = "env.environment=engram_no_such_module:X-v0"
    adapter = ["env=adapter", environment, "device=cpu", f"out={tmp_path}"]
    error = refused(capsys, "train", *adapter)
    assert "engram_no_such_module" in error


def test_errors_have_one_root() -> None:
    assert issubclass(DataError, EngramError)
