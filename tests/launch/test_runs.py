"""Runs from the command line: their folders, interruption, continuation and reports."""

import json
from pathlib import Path

import pytest

from engram.launch.files import read_json
from engram.launch.main import main

QUICK = ["env=chain_bit", "env.length=6", "agent.rollout=16", "agent.chunk=8", "num_envs=8"]
QUICK += ["evaluation.episodes=16", "evaluation.num_envs=8", "policy.width=16", "device=cpu"]


def engram(*arguments: str) -> int:
    return main([*arguments[:1], *QUICK, *arguments[1:]])


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def test_a_comparison_leaves_table_figure_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c"
    assert engram("compare", "memory=[none,gru]", "seeds=2", "budget=512", f"out={out}") == 0
    printed = capsys.readouterr().out
    assert "none" in printed and "chance" in printed and "report.html" in printed
    page = (out / "report.html").read_text()
    assert "where time went" in printed and "Where time went" in page
    assert "data:image/png;base64," in page and "http" not in page.replace("http-equiv", "")
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    results = read_json(out / "results.json")
    assert [row["memory"] for row in results] == ["none", "gru"]
    assert results[1]["seeds"] == [0, 1] and results[1]["steps"] == 512
    assert results[0]["chance"] == 0.5 and results[0]["memory_bytes"] == 0
    shares = results[1]["time"]
    assert set(shares) == {"environment", "acting", "learning", "transfer"}
    assert shares["transfer"] == 0 and 0.9 < sum(shares.values()) <= 1.0001
    assert min(shares["environment"], shares["acting"], shares["learning"]) > 0
    run = out / "gru" / "seed1"
    assert len(lines(run)) == 4
    assert list(run.glob("events.out.tfevents*"))
    assert read_json(run / "config.json")["tree"]["env"]["length"] == 6
    assert read_json(run / "evaluation.json")["episodes"] == 16
    assert main(["eval", f"out={out}", "episodes=8"]) == 0
    assert "gru" in capsys.readouterr().out


def test_a_folder_with_a_run_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"out={tmp_path / 'r'}"
    assert engram("train", "memory=gru", "seeds=1", "budget=128", out) == 0
    before = (tmp_path / "r/gru/seed0/metrics.jsonl").read_text()
    assert engram("train", "memory=gru", "seeds=1", "budget=128", out) == 2
    assert "resume=true" in capsys.readouterr().err
    assert (tmp_path / "r/gru/seed0/metrics.jsonl").read_text() == before
    assert engram("train", "memory=gru", "seeds=1", "budget=128", "agent.clip=0.3", out,
                  "resume=true") == 2  # fmt: skip
    error = capsys.readouterr().err
    assert "agent.clip is 0.3" in error and error.strip().endswith("0.2")


@pytest.mark.parametrize("memory", ["gru", "hcam", "memo"])
def test_an_interrupted_run_agrees_with_an_uninterrupted_one(tmp_path: Path, memory: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["train", f"memory={memory}", "seeds=1"]
    assert engram(*common, "budget=640", f"out={whole}") == 0
    # The budget may grow between a run and its continuation.
    assert engram(*common, "budget=256", f"out={parts}") == 0
    assert engram(*common, "budget=640", f"out={parts}", "resume=true") == 0
    a, b = (folder / memory / "seed0" for folder in (whole, parts))
    assert without_time(lines(a)) == without_time(lines(b))
    first, second = (read_json(run / "evaluation.json") for run in (a, b))
    assert first["score"] == second["score"]


def test_a_killed_run_loses_what_follows_its_checkpoint_only(tmp_path: Path) -> None:
    out = tmp_path / "k"
    assert engram("train", "memory=gru", "seeds=1", "budget=512", f"out={out}") == 0
    run = out / "gru" / "seed0"
    expected = lines(run)
    with (run / "metrics.jsonl").open("a") as file:  # what a killed process left behind
        file.write(json.dumps({**expected[-1], "steps": 640}) + "\n" + '{"steps": 7')
    assert engram("train", "memory=gru", "seeds=1", "budget=768", f"out={out}", "resume=true") == 0
    rows = lines(run)
    assert [row["steps"] for row in rows] == [128, 256, 384, 512, 640, 768]
    assert rows[:4] == expected


def test_a_damaged_checkpoint_stops_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "d"
    assert engram("train", "memory=gru", "seeds=1", "budget=128", f"out={out}") == 0
    path = out / "gru/seed0/checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    for command in (
        ["train", *QUICK, "memory=gru", "seeds=1", "budget=256", f"out={out}", "resume=true"],
        ["eval", f"out={out}"],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "damaged" in error and error.count("\n") == 1


def test_eval_without_runs_says_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", f"out={tmp_path}"]) == 2
    assert "no checkpoint" in capsys.readouterr().err
    assert main(["eval"]) == 2
    assert main(["eval", f"out={tmp_path}", "episode=3"]) == 2
    assert "episodes" in capsys.readouterr().err


def test_a_missing_street_graph_stops_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["env=street", f"env.graph={tmp_path / 'nowhere'}", "seeds=1", "budget=64"]
    assert main(["train", *arguments, f"out={tmp_path / 'o'}"]) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error and error.count("\n") == 1
