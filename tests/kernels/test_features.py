"""Rows of features: written by hand, found again, freed with their voxels, and in a graph."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engram.kernels import (
    FullError,
    Insert,
    VoxelFeatures,
    VoxelMap,
    WhenFull,
    Write,
    read_features,
    write_features,
)
from engram.kernels.errors import DataError, InvalidValueError
from engram.kernels.grid import CELLS
from engram.kernels.reference import Reference
from engram.kernels.storage import LEAST_CAPACITY, Storage

HERE = (0.5, 0.5, 0.5)


def line(count: int = 4, step: float = 1.0) -> torch.Tensor:
    return torch.arange(count)[:, None] * torch.tensor([step, 0.0, 0.0]) + 0.5


def hit(points: torch.Tensor, **given: Any) -> VoxelMap:
    held = VoxelMap(1.0, **given)
    held.insert_points(points, HERE, mode=Insert.ENDPOINT)
    return held


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def test_a_mean_is_that_of_all_calls() -> None:
    features = VoxelFeatures(hit(line()), 1)
    points = line()[[0, 1, 0]]
    told = features.write(points, column(1.0, 5.0, 3.0))
    assert told == (2, 2, 0)
    assert features.values[features.rows(line()[:2])].tolist() == [[2.0], [5.0]]
    told = features.write(line()[:1], column(8.0))
    assert told == (1, 0, 0)
    assert features.values[features.rows(line()[:1])].tolist() == [[4.0]]
    assert features.rows(line()).ge(0).tolist() == [True, True, False, False]
    assert features.count == 2


def test_the_last_of_a_call_stays() -> None:
    features = VoxelFeatures(hit(line()), 1)
    features.write(line()[[0, 0, 1]], column(1.0, 2.0, 3.0), Write.LAST)
    assert features.values[features.rows(line()[:2])].tolist() == [[2.0], [3.0]]
    features.write(line()[[1]], column(9.0), Write.LAST)
    assert features.values[features.rows(line()[:2])].tolist() == [[2.0], [9.0]]


def test_gates_weigh_what_is_new() -> None:
    features = VoxelFeatures(hit(line()), 1)
    gate = torch.tensor([0.2, 0.6, 0.0])
    told = features.write(line()[[0, 0, 1]], column(1.0, 5.0, 7.0), Write.GATED, gate=gate)
    assert told == (1, 1, 1)  # a gate of 0 writes nothing
    row = features.rows(line()[:1])
    assert features.values[row].item() == pytest.approx((0.2 * 1 + 0.6 * 5) / 0.8)
    features.write(line()[[0, 0]], column(1.0, 5.0), Write.GATED, gate=torch.tensor([0.0, 0.5]))
    assert features.values[row].item() == pytest.approx(4.0 + 0.5 * (5.0 - 4.0))


def test_what_no_voxel_can_own_is_left_out_and_counted() -> None:
    features = VoxelFeatures(hit(line()), 1)
    points = torch.tensor([[0.5, 0.5, 0.5], [1e30, 0, 0], [float("nan"), 0, 0], [99.0, 0, 0]])
    told = features.write(points, torch.ones(4, 1))
    assert told == (1, 1, 3)
    told = features.write(line()[:1], torch.full((1, 1), float("nan")))
    assert told == (0, 0, 1)
    assert features.rows(points).tolist() == [features.rows(line()[:1]).item(), -1, -1, -1]
    assert features.rows_of(torch.tensor([[0, 0, 0], [2**40, 0, 0]])).ge(0).tolist() == [1, 0]


def test_gradients_reach_the_rows_that_were_read() -> None:
    held = hit(line())
    features = VoxelFeatures(held, 2)
    features.write(line(), torch.ones(4, 2))
    features.values.requires_grad_()
    _, voxel = held.nearest(line()[:1], 2)
    near = features.rows_of(voxel.flatten(0, 1))
    weight = torch.tensor([[0.75], [0.25]])
    (weight * features.values[near]).sum().backward()
    assert features.values.grad is not None
    assert features.values.grad[near].tolist() == [[0.75, 0.75], [0.25, 0.25]]
    assert features.values.grad.abs().sum().item() == 2.0


def test_rows_leave_with_their_blocks_and_are_given_anew() -> None:
    cap = Storage.bytes_for(LEAST_CAPACITY)
    held = VoxelMap(1.0, max_bytes=cap, when_full=WhenFull.EVICT)
    features = VoxelFeatures(held, 1, max_rows=LEAST_CAPACITY)
    points = line(3 * LEAST_CAPACITY, step=8.0)
    for part in points.split(16):
        held.insert_points(part, part[0], mode=Insert.ENDPOINT)
        features.write(part, part[:, :1])
        rows = features.rows(points)
        there = held.occupancy(points) == 1
        assert torch.equal(rows >= 0, there)
        assert torch.equal(features.values[rows[there], 0], points[there, 0])
    assert features.count == LEAST_CAPACITY == len(features.values)
    held.clear()
    assert features.count == 0 and features.rows(points).eq(-1).all()


def test_rows_follow_a_map_that_grew_since_they_were_written() -> None:
    held = hit(line(10, step=8.0))
    features = VoxelFeatures(held, 1)
    points = line(300, step=8.0)
    features.write(points[:10], points[:10, :1])
    held.insert_points(points, HERE, mode=Insert.ENDPOINT)
    held.clear_outside((0.0, 0.0, 0.0), 40.0)
    there = held.occupancy(points) == 1
    assert 4 < there.sum() < 8
    rows = features.rows(points)
    assert torch.equal(rows >= 0, there)
    assert torch.equal(features.values[rows[there], 0], points[there, 0])


def test_means_of_half_precision_are_summed_in_full() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        features = VoxelFeatures(hit(line()), 1, dtype=dtype)
        features.write(line()[:1].expand(1000, 3), torch.full((1000, 1), 100.0))
        assert features.values[features.rows(line()[:1])].item() == 100.0
    features = VoxelFeatures(hit(line()), 1)
    features.write(line()[[0, 0, 0]], torch.full((3, 1), 3e38))
    assert features.values[features.rows(line()[:1])].item() == pytest.approx(3e38)


def test_values_require_gradients_after_they_grew_and_nobody_holds_what_was_dropped() -> None:
    held = hit(line(200, step=8.0))
    features = VoxelFeatures(held, 1)
    features.values.requires_grad_()
    features.write(line(200, step=8.0), torch.ones(200, 1))
    assert features.values.requires_grad and features.values.is_leaf
    assert len(held.storage.followers) == 1
    del features
    assert len(held.storage.followers) == 0


def test_more_rows_than_allowed_are_refused_and_nothing_is_written() -> None:
    held = hit(line(100, step=8.0))
    features = VoxelFeatures(held, 1, max_rows=70)
    points = line(100, step=8.0)
    features.write(points[:65], points[:65, :1])
    with pytest.raises(FullError, match="needs 71 rows; allowed: max_rows = 70"):
        features.write(points[60:71], torch.zeros(11, 1))
    assert torch.equal(features.values[features.rows(points[:65])], points[:65, :1])
    assert features.rows(points[65:]).eq(-1).all()
    assert features.write(points[65:70], torch.zeros(5, 1)).new == 5


@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_many_writes_are_as_a_dictionary(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    held = VoxelMap(0.5)
    features = VoxelFeatures(held, 2, dtype=torch.float64)
    expected: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for world in (0, 1, 0):
        points = torch.randn(60, 3, generator=random) * 4
        held.insert_points(points, HERE, mode=Insert.ENDPOINT, world=world)
        new = torch.randn(60, 2, generator=random, dtype=torch.float64)
        features.write(points, new, world=world)
        for voxel, feature in zip((points * 2).floor().long().tolist(), new, strict=True):
            expected.setdefault((world, *voxel), []).append(feature)
        if world == 1:
            held.clear_outside((0.0, 0.0, 0.0), 6.0, world=0)
            near = held.occupancy
            for key in [k for k in expected if k[0] == 0]:
                at = (torch.tensor([key[1:]]) + 0.5) * 0.5
                if near(at).item() < 0:
                    del expected[key]
    assert features.count == len(expected)
    voxels = torch.tensor([key[1:] for key in expected])
    worlds = torch.tensor([key[0] for key in expected])
    rows = features.rows_of(voxels, world=worlds)
    assert len(rows.unique()) == len(rows) and rows.ge(0).all()
    means = torch.stack([torch.stack(each).mean(0) for each in expected.values()])
    torch.testing.assert_close(features.values[rows], means)


def write(
    held: VoxelMap,
    new: torch.Tensor | None = None,
    how: Write = Write.GATED,
    gate: torch.Tensor | None = None,
) -> None:
    new = torch.zeros(4, 1) if new is None else new
    VoxelFeatures(held, 1).write(line(), new, how, gate=gate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_features_are_written_the_same_whatever_the_order_of_rows(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    points = torch.randn(300, 3) * 9
    new = torch.randn(300, 5).to(dtype)
    files = [tmp_path / name for name in ("one", "two", "three")]
    for path, order in zip(files, (slice(None), torch.randperm(300)), strict=False):
        held = hit(points[order])
        features = VoxelFeatures(held, 5, dtype=dtype)
        for part in torch.arange(300)[order].split(50):
            features.write(points[part], points[part].repeat(1, 2)[:, :5].to(dtype).round())
        write_features(features, path)
    assert files[0].read_bytes() == files[1].read_bytes()
    again = read_features(files[0], held)
    assert again.values.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert torch.equal(
        again.values[again.rows(points)], features.values[features.rows(points)].to(again.values)
    )
    again.write(points, new)
    features.write(points, new)
    torch.testing.assert_close(
        again.values[again.rows(points)].to(dtype),
        features.values[features.rows(points)],
        rtol=0.02,
        atol=0.02,
    )
    write_features(read_features(files[0], held), files[2])
    assert files[2].read_bytes() == files[0].read_bytes()


def test_damaged_features_and_those_of_another_map_are_refused(tmp_path: Path) -> None:
    held, path = hit(line()), tmp_path / "features"
    features = VoxelFeatures(held, 1)
    features.write(line(), torch.ones(4, 1))
    write_features(features, path)
    with pytest.raises(DataError, match="features of 4 voxels in blocks that the map lacks"):
        read_features(path, VoxelMap(1.0))
    with pytest.raises(FullError):
        read_features(path, held, max_rows=3)
    with np.load(path) as file:
        arrays = dict(file)
    for change in (
        {"cells": arrays["cells"][::-1]},
        {"cells": arrays["cells"] + CELLS},
        {"keys": -arrays["keys"]},
        {"weight": arrays["weight"][1:]},
        {"values": arrays["values"].astype(np.int64)},
        {"values": arrays["values"][:, :0]},
        {"format": np.int64(9)},
    ):
        with path.open("wb") as file:
            np.savez(file, **(arrays | change))
        with pytest.raises(DataError, match=str(path)):
            read_features(path, held)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: VoxelFeatures(m, 0), "channels is 0"),
        (lambda m: write(m, torch.zeros(4, 3)), r"allowed: shape \[4, 1\]"),
        (lambda m: write(m, gate=torch.full((4,), 1.5)), "gate is '1.5 … 1.5'; allowed: 0 to 1"),
        (lambda m: write(m, how=Write.GATED), "gate is None; allowed"),
        (lambda m: VoxelFeatures(m, 1, dtype=torch.int64), "dtype is torch.int64"),
        (
            lambda m: write(m, how=Write.MEAN, gate=torch.ones(4)),
            r"gate is \(4,\); allowed: None in Write.MEAN",
        ),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        call(VoxelMap(1.0, kernel=Reference()))
