"""The plan for clusters, worked out by hand for two of them."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def scale_plan(root: Path) -> Any:
    path = root / "tests/benchmarks/scale_plan.py"
    spec = importlib.util.spec_from_file_location("scale_plan", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["scale_plan"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def costs(scale_plan: Any) -> Any:
    return scale_plan.Costs(
        act=1e-4,
        learn=1e-5,
        steps=1000,
        updates=10,
        bytes_per_step=100.0,
        take=1e-9,
        call=1e-3,
        weights=1_000_000,
        put=1e-3,
    )


def test_one_worker_waits_for_its_environment(scale_plan: Any, costs: Any) -> None:
    found = scale_plan.estimate(costs, 1, 1)
    # 0.1 s of acting; 0.1 ms of intake, 1 ms of control, 1 ms of broadcast, 10 ms of learning.
    assert found.synchronous == pytest.approx(1000 / 0.1121)
    assert found.asynchronous == pytest.approx(1000 / 0.1)
    assert found.limit == "acting"


def test_many_workers_wait_for_their_learner(scale_plan: Any, costs: Any) -> None:
    found = scale_plan.estimate(costs, 64, 1)
    # 64,000 steps: learning 0.64 s, intake 6.4 ms, control 64 ms, weights to two machines 2.6 ms.
    driver = 0.64 + 0.0064 + 0.064 + 0.0026
    assert found.asynchronous == pytest.approx(64_000 / driver)
    assert found.limit == "learning"


def test_more_learners_share_the_work_and_pay_for_the_gradients(
    scale_plan: Any, costs: Any
) -> None:
    found = scale_plan.estimate(costs, 64, 4)
    # A quarter each, weights to one machine; ten all-reduces of 1.5 MB and two messages.
    reduce = 10 * (2 * 1e6 * 0.75 / 1.25e9 + 2e-4 * 2)
    driver = 0.16 + 0.0016 + 0.016 + 0.0018 + reduce
    assert found.asynchronous == pytest.approx(64_000 / driver)
    assert "| 4,096 |" in scale_plan.plan(costs)
