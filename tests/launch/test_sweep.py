"""Sweeps: what is searched, what is refused, and that an interrupted one goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engram.kernels.errors import EngramError
from engram.launch.main import main
from engram.launch.search_space import Choices, Interval, search_space
from engram.launch.sweep_results import Trial, found_trials, summary

QUICK = ["env=chain_bit", "env.length=6", "agent.rollout=16", "agent.chunk=8", "num_envs=8"]
QUICK += ["evaluation.episodes=16", "evaluation.num_envs=8", "policy.width=16", "device=cpu"]
QUICK += ["ray.cpus_per_learner=0.5", f"ray.object_store_memory={100 * 2**20}"]
RATES = "agent.learning_rate=tag(log,interval(1e-4,1e-2))"


def test_lists_and_intervals_are_taken_out_of_the_arguments() -> None:
    arguments = ["env=tmaze", "memory=gru,none", RATES, "agent.epochs=range(1,4)", "seeds=2"]
    arguments += ["agent.clip=interval(0.1,0.3)", "num_envs=int(interval(8,64))"]
    fixed, space = search_space(arguments)
    assert fixed == ["env=tmaze", "seeds=2"]
    assert space == {
        "memory": Choices(["gru", "none"]),
        "agent.learning_rate": Interval(1e-4, 1e-2, logarithmic=True, whole=False),
        "agent.epochs": Choices(["1", "2", "3"]),
        "agent.clip": Interval(0.1, 0.3, logarithmic=False, whole=False),
        "num_envs": Interval(8, 64, logarithmic=False, whole=True),
    }


def test_a_pattern_stands_for_the_files_of_a_group() -> None:
    _, space = search_space(["memory=glob(g*)"])
    assert space == {"memory": Choices(["gru", "gtrxl"])}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["memory=gru"], "nothing is searched"),
        (["memory=gru,gruu"], "gruu"),
        (["memory=gru,none", "agent.clip=interval(0.3,0.1)"], "agent.clip is '(0.3, 0.1)'"),
        (["agent.clip=tag(log,interval(0,1))"], "a low end above 0"),
        (["agent.cliip=interval(0,1)"], "cliip"),
        (["agent.clip=interval(0.1"], "interval(0.1"),
        (["agent.clip=glob(*)"], "agent.clip is"),
        (["seeds=1,2"], "seeds cannot be searched"),
        (["memory=gru,none", "ray.workers=2"], "ray.workers is 2; allowed: 0 in a sweep"),
        (["memory=gru,none", "sweep.samples=0"], "sweep.samples is 0"),
        (["memory=gru,none", "sweep.samples=2"], "sweep.samples is 2; allowed: 1 where nothing"),
        (["memory=gru,none", "sweep.first=2"], "sweep.first is 2.0; allowed: a share"),
        (["memory=gru,none", "mirror=there"], "mirror is 'there'; allowed: null in a sweep"),
        (["agent.epochs=0,1"], "agent.epochs is 0; allowed: a whole number, 1 or more"),
        (["memory=gru,none", "sweep.reduction=1"], "sweep.reduction is 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_space_that_cannot_be_searched_is_refused_before_anything_runs(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *QUICK, f"out={tmp_path / 's'}", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_the_best_point_comes_first_and_an_ended_trial_last() -> None:
    trials = [
        Trial({"memory": "none"}, 0, 100, None, 0.9, True, None),
        Trial({"memory": "gru"}, 0, 100, 0.5, 0.4, False, None),
        Trial({"memory": "gru"}, 1, 100, 0.7, 0.6, False, None),
        Trial({"memory": "hcam"}, 0, 100, 0.8, 0.8, False, None),
        Trial({"memory": "memo"}, 0, 100, 0.9, 0.9, False, None),  # a lucky seed
        Trial({"memory": "memo"}, 1, 10, None, 0.1, True, None),
        Trial({"memory": "lstm"}, 0, 0, None, None, False, "no such robot"),
    ]
    header, cells = summary(trials, ["memory"])
    assert header[:2] == ["memory", "score"]
    assert [line[0] for line in cells] == ["hcam", "gru", "memo", "none", "lstm"]
    assert cells[1][1:5] == ["0.600", "± 1.271", "2/2", "0.500"]
    assert cells[2][1:4] == ["0.900", "one seed", "1/2"]
    assert cells[3][1:3] == ["–", "ended early"] and cells[4][1:3] == ["–", "failed"]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_an_interrupted_sweep_goes_on_and_reports_every_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    arguments = ["sweep", *QUICK, "memory=gru,none", RATES, "seeds=1", "budget=4096"]
    arguments += [f"out={out}", "checkpoint_seconds=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "engram.launch.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("trials/*/evaluation.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/evaluation.json")}
    assert len(before) < 2

    assert main(arguments) == 2
    assert "already holds a sweep; allowed: resume=true" in capsys.readouterr().err
    assert main([*arguments, "agent.clip=0.3", "resume=true"]) == 2
    assert "resume: argument 'agent.clip=0.3'" in capsys.readouterr().err
    assert main([*arguments, "resume=true"]) == 0
    printed = capsys.readouterr().out
    assert "2 trials" in printed and "have ended" not in printed

    trials = found_trials(out)
    assert len(trials) == 2 and all(trial.score is not None for trial in trials)
    assert {trial.point["memory"] for trial in trials} == {"gru", "none"}
    rates = {trial.point["agent.learning_rate"] for trial in trials}
    assert len(rates) == 1, "every memory gets the same draw"
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "table.md").read_text().count("\n") == 4
    assert list(out.glob("trials/*/failure.txt")) == []
    assert len(json.loads((out / "results.json").read_text())) == 2
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written, "a finished trial is not run again"


def test_a_damaged_sweep_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    out.mkdir()
    (out / "sweep.json").write_text("{}")
    assert main(["sweep", *QUICK, "memory=gru,none", f"out={out}", "resume=true"]) == 2
    assert "damaged or of another version" in capsys.readouterr().err
    (out / "trials/x").mkdir(parents=True)
    (out / "trials/x/trial.json").write_text('{"seed": 1}')
    with pytest.raises(EngramError, match="no point"):
        found_trials(out)
