"""Runs spread over processes by Ray, from the command line: killed, resumed, refused."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engram.launch.main import main

pytest.importorskip("ray")

QUICK = ["env=chain_bit", "env.length=6", "agent.rollout=16", "agent.chunk=8", "num_envs=8"]
QUICK += ["evaluation.episodes=16", "evaluation.num_envs=8", "policy.width=16", "device=cpu"]
QUICK += ["memory=gru", "seeds=1", "ray.cpus_per_worker=0.25", "ray.cpus_per_learner=0.25"]
QUICK += [f"ray.object_store_memory={100 * 2**20}"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "engram.launch.main", "train", *QUICK, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, "ENGRAM_TEST": arguments[-1]},  # to find what it starts
        start_new_session=True,
    )


def finish(folder: Path, *arguments: str) -> str:
    process = start(folder, *arguments)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    return text


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stop(process: subprocess.Popen[str]) -> None:
    """Press Ctrl-C; check that the run ends well and says how it goes on."""
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert "resume=true" in text and "Traceback" not in text


def metrics(out: Path) -> list[dict[str, Any]]:
    """What was measured, without what depends on clocks and processes."""
    path = out / "gru/seed0/metrics.jsonl"
    apart = ("second", "bytes", "staleness", "replaced")
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{k: v for k, v in row.items() if not any(word in k for word in apart)} for row in rows]


def leave_behind(run: Path, copy: Path) -> None:
    """Copy what a killing would leave: a checkpoint, and what was measured up to it or beyond."""
    copy.mkdir(parents=True)
    for name in ("checkpoint.safetensors", "config.json", "metrics.jsonl"):
        shutil.copy(run / name, copy / name)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize(
    "spread",
    [
        ["ray.workers=2"],
        ["ray.learners=2", "ray.workers=2", "ray.asynchronous=true"],
    ],
    ids=["workers", "learners"],
)
def test_a_run_whose_driver_was_killed_goes_on_exactly(spread: list[str], tmp_path: Path) -> None:
    out, copy = tmp_path / "run", tmp_path / "copy"
    arguments = [*spread, "checkpoint_seconds=0"]
    process = start(tmp_path, *arguments, f"out={out}", "budget=10_000_000")
    wait_until(lambda: len(metrics(out)) > 3, process)
    leave_behind(out / "gru/seed0", copy / "gru/seed0")
    earlier = len(metrics(copy))
    wait_until(lambda: len(metrics(out)) > earlier + 4, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    through = metrics(out)
    budget = through[-1]["steps"]
    text = finish(tmp_path, *arguments, f"out={copy}", f"budget={budget}", "resume=true")
    assert "where time went" in text and "Report:" in text
    assert metrics(copy) == through


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_ctrl_c_saves_and_exits_with_0(tmp_path: Path) -> None:
    out = tmp_path / "s"
    process = start(tmp_path, "ray.workers=2", f"out={out}", "budget=10_000_000")
    wait_until(lambda: len(metrics(out)) > 2, process)
    stop(process)
    assert (out / "gru/seed0/checkpoint.safetensors").exists()


def processes_of(run: subprocess.Popen[str], title: str) -> list[int]:
    """Processes of a title whose environment is that of a run."""
    mark = f"ENGRAM_TEST={run.args[-1]}".encode()  # type: ignore[index]
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if title.encode() in (path / "cmdline").read_bytes():
                if mark in (path / "environ").read_bytes():
                    found.append(int(path.name))
        except OSError:
            continue  # it ended meanwhile
    return sorted(found)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_killed_learner_sends_the_group_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    """And Ctrl-C ends a group of learners as it ends any run."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs Linux to find the learners")
    out, name = tmp_path / "run", f"out={tmp_path / 'run'}"
    process = start(tmp_path, "ray.learners=2", "checkpoint_seconds=0", "budget=10_000_000", name)
    wait_until(lambda: len(metrics(out)) > 3, process)
    before = processes_of(process, "RayTrainWorker")
    assert len(before) == 2
    os.kill(before[1], signal.SIGKILL)
    wait_until(
        lambda: len(set(processes_of(process, "RayTrainWorker")) - set(before)) == 2, process
    )
    lines = len(metrics(out))
    wait_until(lambda: len(metrics(out)) > lines + 3, process)
    stop(process)
    assert (out / "gru/seed0/checkpoint.safetensors").exists()
    steps = [row["steps"] for row in metrics(out)]
    assert steps == [128 * (i + 1) for i in range(len(steps))], "none lost, none counted twice"


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ray.workers=3"], "num_envs is 8; allowed: multiples of ray.workers = 3"),
        (["ray.workers=3", "ray.learners=2"], "ray.workers is 3; allowed: 0 and multiples of"),
        (["ray.workers=-1"], "ray.workers is -1; allowed: a whole number, 0 or more"),
        (["ray.asynchronous=true"], "ray.asynchronous is True; allowed: false where"),
        (["ray.timeout=0"], "ray.timeout is 0.0; allowed: seconds above 0"),
        (["ray.workers=2", "workers=2"], "workers is 2; allowed: 1 (runs at a time)"),
        (["ray.workers=2", "ray.address=there"], "ray.address is 'there'"),
        (["ray.workers=2", "ray.address=localhost:x"], "ray.address is 'localhost:x'"),
        (["ray.workers=2", "ray.wheel=engram"], "ray.wheel is 'engram'; allowed: a .whl file"),
        (["ray.workers=2", "ray.object_store_memory=5"], "ray.object_store_memory is 5; allowed:"),
        (["ray.workers=2", "ray.object_store_memory=abc"], "ray.object_store_memory is 'abc'"),
        (
            ["ray.workers=2", f"ray.object_store_memory={10**13}"],
            "ray.object_store_memory is 10000000000000; allowed: at",
        ),
        (["ray.workers=2", "ray.address=5"], "ray.address is 5; allowed: text, or null"),
        (["ray.workers=2", "ray.wheel=3"], "ray.wheel is 3; allowed: text, or null"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_spread_is_refused_in_one_line(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *QUICK, "budget=128", f"out={tmp_path / 'r'}", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_cluster_that_does_not_answer_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{closed_port()}"
    arguments = [f"out={tmp_path / 'r'}", "ray.workers=2", f"ray.address={address}"]
    assert main(["train", *QUICK, "budget=128", "ray.timeout=2", *arguments]) == 2
    error = capsys.readouterr().err
    assert f"ray.address is '{address}': nobody answers within 2 s" in error
    assert error.count("\n") == 1
