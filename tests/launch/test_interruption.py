"""Interruptions: signals at any time, killed workers, environments with processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

QUICK = ["env=chain_bit", "env.length=6", "agent.rollout=16", "agent.chunk=8", "num_envs=8"]
QUICK += ["evaluation.episodes=16", "evaluation.num_envs=8", "policy.width=16", "device=cpu"]
ASYNC = ["env=adapter", "env.asynchronous=true", "num_envs=2", "evaluation.num_envs=2"]
ASYNC += ["agent.rollout=16", "agent.chunk=8", "evaluation.episodes=2", "device=cpu"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "engram.launch.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        start_new_session=True,
    )


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_saves_and_exits_with_0(
    tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    out = tmp_path / "s"
    process = start(
        tmp_path, "compare", *QUICK, "seeds=1", "memory=[gru,none]", "budget=10_000_000",
        f"workers={workers}", f"out={out}",
    )  # fmt: skip
    wait_until(lambda: lines(out / "gru/seed0/metrics.jsonl") > 2, process)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert "resume=true" in text
    assert (out / "gru/seed0/checkpoint.safetensors").exists()
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_ctrl_c_reaches_no_environment_process(tmp_path: Path) -> None:
    out = tmp_path / "a"
    process = start(
        tmp_path, "train", *ASYNC, "memory=none", "seeds=1", "budget=10_000_000", f"out={out}"
    )
    wait_until(lambda: lines(out / "none/seed0/metrics.jsonl") > 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in text, text
    assert (out / "none/seed0/checkpoint.safetensors").exists()


@pytest.mark.slow
def test_runs_side_by_side_may_have_environments_with_processes(tmp_path: Path) -> None:
    process = start(
        tmp_path, "train", *ASYNC, "num_envs=1", "evaluation.num_envs=1", "memory=none",
        "seeds=2", "workers=2", "budget=64", f"out={tmp_path / 'b'}",
    )  # fmt: skip
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_stops_an_evaluation(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "e"
    arguments = [*QUICK, "memory=none", f"seeds={workers}", f"workers={workers}", "budget=128"]
    process = start(
        tmp_path, "train", *arguments, "evaluation.episodes=1_000_000_000", f"out={out}"
    )
    wait_until((out / "none/seed0/checkpoint.safetensors").exists, process)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "resume=true" in text and "Traceback" not in text, text


def test_a_killed_worker_is_reported(tmp_path: Path) -> None:
    out = tmp_path / "w"
    process = start(
        tmp_path, "compare", *QUICK, "seeds=1", "memory=[gru,none]", "budget=10_000_000",
        "workers=2", f"out={out}",
    )  # fmt: skip
    wait_until(lambda: lines(out / "none/seed0/metrics.jsonl") > 0, process)
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not tasks.exists():
        process.kill()
        pytest.skip("needs Linux to find the worker processes")
    children = [int(child) for child in tasks.read_text().split()]
    workers = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    error, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "was killed" in error and "resume=true" in error
