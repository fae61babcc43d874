"""Evaluations of `engram clone`, read again; those that are damaged are named."""

import json
from pathlib import Path
from typing import Any

import pytest

from engram.kernels.errors import DataError
from engram.launch.clone_results import findings, table

GAP = {"success": 0.5, "first_choice": 0.75, "episodes": 4, "memory_bytes": 8}
FACTS: dict[str, Any] = {
    "chance": 0.25,
    "parameters": 10,
    "memory_parameters": 2,
    "updates": 3,
    "seconds": 1.5,
    "gaps": {"2": GAP, "5": {**GAP, "success": 1.0}},
}


def read(folder: Path, *contents: Any) -> Any:
    """The findings of one memory, from the evaluation of each of its seeds."""
    for seed, content in enumerate(contents):
        run = folder / "put_back" / "gru" / f"seed{seed}"
        run.mkdir(parents=True, exist_ok=True)
        (run / "evaluation.json").write_text(json.dumps(content))
    return findings(folder, ["put_back"], ["gru"], list(range(len(contents))))


def test_seeds_are_put_together_gap_by_gap(tmp_path: Path) -> None:
    other = {**FACTS, "gaps": {"2": {**GAP, "success": 0.0}, "5": GAP}}
    near, far = read(tmp_path, FACTS, other)
    assert (near.gap, far.gap) == (2, 5)
    assert (near.success, far.success) == (0.25, 0.75) and near.successes == [0.5, 0.0]
    assert near.episodes == 8 and near.chance == 0.25 and near.seconds == 1.5


@pytest.mark.parametrize(
    "content, said",
    [
        ({}, "chance is None"),
        ([], "chance is None"),
        ({**FACTS, "gaps": None}, "gaps is None"),
        ({**FACTS, "gaps": {}}, "gaps is {}"),
        ({**FACTS, "gaps": {"near": GAP}}, "gaps is {'near'"),
        ({**FACTS, "gaps": {"2": {}}}, "success is None"),
        ({**FACTS, "gaps": {"2": {**GAP, "episodes": "many"}}}, "episodes is 'many'"),
        ({**FACTS, "seconds": "1"}, "seconds is '1'"),
    ],
    ids=str,
)
def test_a_damaged_evaluation_is_named(content: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, FACTS, content)
    assert f"seed1/evaluation.json is damaged: {said}" in str(caught.value)


def test_seeds_at_different_gaps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gaps by seed are \{0: \['2', '5'\], 1: \['2'\]\}"):
        read(tmp_path, FACTS, {**FACTS, "gaps": {"2": GAP}})


def test_halves_of_intervals_are_rounded_not_cut(tmp_path: Path) -> None:
    other = {**FACTS, "gaps": {"2": {**GAP, "success": 0.509}, "5": GAP}}
    _, cells = table(read(tmp_path, FACTS, other)[:1])
    assert cells[0][3] == "0.50 ± 0.06 / 0.75 ± 0.00"  # 12.706 · 0.009 / 2 = 0.0572
