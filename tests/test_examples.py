"""The code in docs/ does what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_memory_learns_in_a_loop_of_plain_torch(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(root / "docs/examples/torch_loop.py")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.removeprefix("right: ")) > 0.95


def block(root: Path, page: str, words: str) -> str:
    """The one block of Python in a page that holds some words."""
    text = (root / "docs" / page).read_text()
    (found,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if words in b]
    return found


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page_on_stable_baselines_runs(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    code = block(root, "frameworks.md", "MemoryPPO")
    assert "100_000" in code and "eval_freq=1_000" in code
    code = code.replace("100_000", "2_048").replace("eval_freq=1_000", "eval_freq=128")
    told = run(code, tmp_path).strip().splitlines()[-1]
    mean, _ = (float(number) for number in re.findall(r"\d+\.\d+", told))
    assert 0 < mean <= 500


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_the_page_on_rllib_runs(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.rllib")
    code = block(root, "frameworks.md", "memory_config")
    returns = run(code.replace("range(3)", "range(1)"), tmp_path).strip().splitlines()
    assert float(returns[-1]) > 5


@pytest.mark.slow
def test_the_page_on_simulators_runs(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("mujoco_warp")
    code = block(root, "frameworks.md", "WarpMujoco").replace("1024", "32")
    assert "tensor(" in run(code, tmp_path)


@pytest.mark.slow
def test_the_page_on_manipulation_runs(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("mink")
    pytest.importorskip("pyarrow")
    told = run(block(root, "manipulation.md", "ManipulationEnv"), tmp_path).splitlines()
    assert re.fullmatch(r"1(\.0)? 1\.0 chance 0\.2", told[0])
    assert told[1] == "torch.Size([32, 64, 64, 3])"
    code = block(root, "manipulation.md", "DemonstrationWriter")
    assert "episodes < 20" in code
    (line,) = run(code.replace("episodes < 20", "episodes < 4"), tmp_path).splitlines()[-2:-1]
    assert line.startswith("4 180 put the block back")
