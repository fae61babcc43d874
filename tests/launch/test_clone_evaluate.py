"""`engram eval` of what `engram clone` trained: at other gaps, on other episodes."""

import shutil
from pathlib import Path

import pytest

from engram.launch.clone_evaluate import evaluate_gaps
from engram.launch.clone_saved import load_clone
from engram.launch.files import read_json, write_json
from engram.launch.folder import CHECKPOINT
from engram.launch.main import main


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["eval", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["eval", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("engram: ") and error.count("\n") == 1
    return error


@pytest.mark.slow
def test_gaps_that_no_run_was_evaluated_at(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    out = said(capsys, f"out={study}", "gaps=[2,4]", "episodes=1")
    assert "gap 2" in out and "gap 4" in out and "gap 3" not in out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    rows = [row for row in rows if row and row[0] == "remember_color"]
    assert sorted(row[1] for row in rows) == ["gru", "none"]
    assert all(row[2] == "0.33" and row[-2:] == ["1", "2"] for row in rows)  # seeds, episodes
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before
    run = study / "remember_color" / "gru" / "seed0"
    assert "gru" in said(capsys, f"out={run}", "episodes=1")


@pytest.mark.slow
def test_the_same_episodes_show_what_the_run_wrote(study: Path) -> None:
    import torch

    from engram.launch.build import EVALUATION_SEED

    run = study / "remember_color" / "gru" / "seed0"
    cloned, tree = load_clone(run, torch.device("cpu"))
    found = evaluate_gaps(
        cloned,
        tree,
        gaps=tree["task"]["gaps"],
        episodes=tree["evaluation"]["final"],
        seed=EVALUATION_SEED,
    )
    wrote = read_json(run / "evaluation.json")
    assert found == {"chance": wrote["chance"], "gaps": wrote["gaps"]}


@pytest.mark.slow
def test_studies_side_by_side_keep_their_rows_apart(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(study / "remember_color" / "gru", tmp_path / name)
    out = said(capsys, f"out={tmp_path}", "gaps=2", "episodes=1")
    assert " a " in out and " b " in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "argument, message",
    [
        ("gaps=[two]", "gaps is '[two]'; allowed: whole numbers"),
        ("gaps=[]", "gaps is '[]'; allowed: whole numbers"),
        ("gaps=[2,2]", "different whole numbers"),
        ("greedy=true", "greedy means nothing to runs of clone"),
        ("episodes=0", "episodes is '0'; allowed: a whole number, 1 or more"),
        ("gap=2", "did you mean gaps"),
    ],
)
def test_what_makes_no_sense_is_refused(
    argument: str, message: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, f"out={study}", argument)


@pytest.mark.slow
def test_runs_of_another_kind_are_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / CHECKPOINT).touch()
    said = refused(capsys, f"out={tmp_path}", "gaps=[2]")
    assert "gaps means nothing to runs of train" in said
    shutil.copytree(study / "remember_color", tmp_path / "clones")
    assert "runs of train and of clone" in refused(capsys, f"out={tmp_path}")
    (tmp_path / CHECKPOINT).unlink()
    mixed = tmp_path / "clones" / "none" / "seed1"
    shutil.copytree(study / "remember_color" / "gru" / "seed0", mixed)
    assert "different settings" in refused(capsys, f"out={tmp_path / 'clones' / 'none'}")


@pytest.mark.slow
def test_a_run_that_had_more_to_learn_is_named(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(study / "remember_color" / "gru" / "seed0", tmp_path / "gru" / "a"))
    config = read_json(run / "config.json")
    config["tree"]["imitation"]["updates"] = 9
    write_json(run / "config.json", config)
    out = said(capsys, f"out={tmp_path}", "gaps=2", "episodes=1")
    assert "gru: after 4 of 9 updates" in out
    for part in ("task", "evaluation"):
        lacking = {k: v for k, v in config["tree"].items() if k != part}
        write_json(run / "config.json", {**config, "tree": lacking})
        assert f"it has no settings of {part}" in refused(capsys, f"out={tmp_path}")
