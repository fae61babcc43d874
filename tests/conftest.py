"""What every test gets: one thread, one seed, and the way to the reference data.

`engram` must not be imported here: pytest reads this file before the plugin that checks shapes
has hooked the import, and whatever is imported too early goes unchecked.
"""

import os
import random
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# Two threads on tensors this small cost more than they save, and vary the time of a test.
torch.set_num_threads(1)

# Besides its name, this fills uninitialised memory with NaN, so that reading it is noticed.
# A GPU lacks deterministic versions of some operations.
torch.use_deterministic_algorithms(not torch.cuda.is_available())

hypothesis.settings.register_profile(
    "engram", deadline=None, derandomize=True, max_examples=30, database=None
)
hypothesis.settings.load_profile("engram")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed the global generators before each test; the value is 0."""
    random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call engram as its users do, without the checks of annotations that tests add."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest) -> None:
    """Call engram unchecked in slow tests: checks double the time of a training.

    Fixtures of a module or session begin before this one and stay checked.
    """
    if request.node.get_closest_marker("slow"):
        request.getfixturevalue("unchecked")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recorded data too large for the repository: lidar, rooms, street graphs, golden values.

    `ENGRAM_DATA` names the folder; without it, `shared/data` in or beside the checkout.
    """
    named = os.environ.get("ENGRAM_DATA")
    places = [Path(named)] if named else [base / "shared/data" for base in (ROOT, ROOT.parent)]
    for place in places:
        if place.is_dir():
            return place
    pytest.skip("no recorded data: set ENGRAM_DATA to the folder that holds it")


@pytest.fixture(scope="session")
def golden(shared_data: Path) -> Path:
    """Inputs and outputs recorded from other implementations of the same algorithms."""
    folder = shared_data / "golden"
    if not folder.is_dir():
        pytest.skip(f"no golden values: {shared_data.name} has no folder 'golden'")
    return folder
