"""What the voxel map refuses: damaged files, wrong arguments; and what it says without kernels."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engram.kernels import Camera, Insert, Occupancy, VoxelMap, native, surface_normals
from engram.kernels.errors import DataError, InvalidValueError
from engram.kernels.native import Native
from engram.kernels.reference import Reference

HERE = (0.0, 0.0, 0.0)


def project(held: VoxelMap, max_range: float = 9.0, poses: torch.Tensor | None = None) -> None:
    camera = Camera(1, 1, 1.0, 1.0, 0.0, 0.0)
    pose = torch.eye(4) if poses is None else poses
    held.insert_depth(torch.ones(1, 1), camera, pose, mode=Insert.PROJECTIVE, max_range=max_range)


def damages() -> dict[str, Any]:
    def bend(name: str, change: Any) -> Any:
        def apply(arrays: dict[str, np.ndarray]) -> None:
            arrays[name] = change(arrays[name])

        return apply

    return {
        "version": bend("format", lambda x: x + 1),
        "type": bend("log_odds", lambda x: x.astype(np.int16)),
        "shape": bend("log_odds", lambda x: x[:, :8]),
        "objects": bend("voxel_size", lambda x: np.array([x], dtype=object)),
        "order": bend("keys", lambda x: x[::-1]),
        "length": bend("keys", lambda x: x[1:]),
        "size": bend("voxel_size", lambda x: -x),
        "value": bend("log_odds", lambda x: np.full_like(x, 127)),
        "missing": lambda arrays: arrays.pop("keys"),
        "more": bend("extra", lambda x: x),
    }


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "map"
    held = VoxelMap(1.0, kernel=Reference())
    held.insert_points(torch.randn(50, 3) * 20, HERE)
    held.save(path)
    with np.load(path) as file:
        arrays: dict[str, Any] = {**file, "extra": np.zeros(1)}
    if damage != "more":
        del arrays["extra"]
    damages()[damage](arrays)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(DataError, match=str(path)):
        VoxelMap.load(path, kernel=Reference())


def test_a_truncated_or_flipped_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "map"
    held = VoxelMap(1.0, kernel=Reference())
    held.insert_points(torch.randn(50, 3) * 20, HERE)
    held.save(path)
    whole = path.read_bytes()
    for broken in (whole[:-30], whole[: len(whole) // 2], b"", b"no map"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=str(path)):
            VoxelMap.load(path, kernel=Reference())
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="it holds a single array"):
        VoxelMap.load(path, kernel=Reference())
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(DataError, match=str(path)):
        VoxelMap.load(path, kernel=Reference())
    with pytest.raises(DataError, match="absent"):
        VoxelMap.load(tmp_path / "absent", kernel=Reference())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: VoxelMap(0.0), "voxel_size is 0.0; allowed: finite numbers above 0"),
        (lambda m: VoxelMap(math.nan), "voxel_size is nan"),
        (lambda m: VoxelMap(1.0, max_bytes=10), "max_bytes is 10; allowed"),
        (lambda m: m.insert_points(torch.zeros(1, 3), (0.0, math.nan, 0.0)), "origin is"),
        (lambda m: m.insert_points(torch.zeros(1, 3), (0.0, 9e9, 0.0)), "origin is"),
        (lambda m: m.insert_points(torch.zeros(1, 3), HERE, max_range=0.0), "max_range is 0.0"),
        (lambda m: m.insert_points(torch.zeros(1, 3), HERE, world=-1), "world is -1"),
        (lambda m: m.insert_points(torch.zeros(1, 3), HERE, world=32_768), "0 to 32767"),
        (lambda m: m.log_odds(torch.zeros(1, 3), world=torch.tensor([-1])), "world is '-1"),
        (lambda m: m.nearest(torch.zeros(1, 3), 0), "k is 0; allowed: 1 or more"),
        (lambda m: m.count_within(torch.zeros(1, 3), -1.0), "radius is -1.0"),
        (lambda m: m.cast_rays(torch.zeros(1, 3), torch.zeros(1, 3)), "ray 0 is"),
        (lambda m: m.cast_rays(torch.full((1, 3), 9e9), torch.ones(1, 3)), "ray 0 is"),
        (
            lambda m: m.insert_points(torch.zeros(1, 3), HERE, mode=Insert.PROJECTIVE),
            "only depth images can be projected",
        ),
        (
            lambda m: m.insert_points(torch.zeros(2, 1, 3), torch.zeros(2, 3), world=[1, 1]),
            r"world is \[1, 1\]; allowed: 2, each once",
        ),
        (lambda m: m.insert_points(torch.zeros(2, 1, 3), HERE), r"origin is \[3\]; allowed: shape"),
        (lambda m: project(m, max_range=math.inf), "max_range is inf; allowed: up to 1000.0 m"),
        (lambda m: project(m, poses=torch.diag(torch.tensor([2.0, 1, 1, 1]))), "is off by 3"),
        (lambda m: project(m, poses=torch.diag(torch.tensor([-1.0, 1, 1, 1]))), "that mirrors"),
        (lambda m: project(m, poses=-torch.eye(4)), "matrix ending in"),
        (lambda m: m.clear_outside(HERE, math.nan), "radius is nan"),
        (lambda m: m.clear([99_999]), "world is 99999"),
        (lambda m: m.frustum(Camera(4, 4, 0.0, 1.0, 2.0, 2.0), torch.eye(4)), "camera is"),
        (lambda m: surface_normals(m, math.inf), "radius is inf"),
        (lambda m: Occupancy(hit=0.4).evidence(), "occupancy is"),
    ],
)
def test_what_cannot_work_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        call(VoxelMap(1.0, kernel=Reference()))


def run_without_type_checks(code: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_compiled_kernels_the_map_says_so_once() -> None:
    code = """
import warnings
from engram.kernels import VoxelMap, native
native.libraries = lambda: []
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    maps = [VoxelMap(1.0) for _ in range(3)]
print(len(seen), seen[0].message)
"""
    told = run_without_type_checks(code)
    assert told.startswith("1 no compiled kernels for cpu: VoxelMap runs in torch alone")


@pytest.mark.skipif(not native.libraries(), reason="no compiled kernels")
def test_threads_are_at_least_one() -> None:
    with pytest.raises(InvalidValueError, match="threads is -1"):
        Native(-1)


def test_what_the_types_forbid_is_refused_where_nobody_checks_types() -> None:
    code = """
import torch
from engram.kernels import VoxelFeatures, VoxelMap, Write
from engram.kernels.errors import InvalidValueError
held = VoxelMap(1.0)
features = VoxelFeatures(held, 1)
zeros = torch.zeros(4, 3)
for call in (
    lambda: held.cast_rays(zeros, torch.ones(1, 3)),
    lambda: held.cast_rays(zeros[:, :2], zeros[:, :2]),
    lambda: held.insert_points(zeros, zeros[0], world=1.5),
    lambda: held.log_odds(zeros, world=torch.tensor([0.0, 1.0, 1.7, 3.2])),
    lambda: held.clear(torch.tensor([True, False])),
    lambda: held.insert_points(zeros[:, :2], zeros[0]),
    lambda: features.write(zeros, zeros[:, :1], Write.GATED, gate=torch.ones(4, 1)),
):
    try:
        call()
    except InvalidValueError as error:
        print(error)
"""
    done = run_without_type_checks(code)
    assert len(done.splitlines()) == 7, done
