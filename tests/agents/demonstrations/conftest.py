"""Small episodes; `engram` must not be imported here."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("av")

CAMERA = "observation.images.top"
SIZE = 24


def columns(number: int, length: int) -> dict[str, np.ndarray]:
    """Frames that differ from those of every other episode."""
    rng = np.random.default_rng(number)
    return {
        CAMERA: rng.integers(0, 256, (length, SIZE, SIZE, 3), np.uint8),
        "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
        "success": np.arange(length)[:, None] == length - 1,
    }


@pytest.fixture(scope="session")
def features() -> dict[str, Any]:
    """What the small episodes hold."""
    from engram.agents.demonstrations import Feature

    return {
        CAMERA: Feature("video", (SIZE, SIZE, 3), ["height", "width", "channels"]),
        "observation.state": Feature("float32", (3,)),
        "action": Feature("float32", (2,), ["left", "right"]),
        "success": Feature("bool", (1,)),
    }


@pytest.fixture(scope="session")
def make():
    """Make episode `number`: 4 to 6 frames, one of two instructions."""
    from engram.agents.demonstrations import Episode

    def episode(number: int, length: int | None = None) -> Episode:
        task = f"press the {('red', 'green')[number % 2]} button"
        return Episode(columns(number, 4 + number % 3 if length is None else length), task)

    return episode


@pytest.fixture(scope="session")
def recorded(tmp_path_factory, features, make):
    """A data set of five episodes in three files of each kind; tests that change it copy it."""
    from engram.agents.demonstrations import DemonstrationWriter

    folder = tmp_path_factory.mktemp("demonstrations") / "recorded"
    with DemonstrationWriter(folder, features=features, episodes_per_file=2) as writer:
        for number in range(5):
            writer.add(make(number))
    return folder
