"""The examples in docs/examples do what they say."""

import subprocess
import sys
from pathlib import Path


def test_a_memory_learns_in_a_loop_of_plain_torch(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(root / "docs/examples/torch_loop.py")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.removeprefix("right: ")) > 0.95
