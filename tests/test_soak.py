"""The soak of tests/benchmarks, short: no step is lost, memory stays, the dead are replaced."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_many_workers_hold_for_a_short_while(root: Path) -> None:
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "ray_soak.py", "--workers=4", "--minutes=0.3", "--kill-every=0.1"],
        cwd=root / "tests/benchmarks",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "held" in done.stdout.splitlines()
    replaced = next(line for line in done.stdout.splitlines() if line.startswith("workers rep"))
    assert int(replaced.split(":")[1]) >= 1
