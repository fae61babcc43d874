"""Checkpoints: whole or not at all, and refused with a reason where they are damaged."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engram.agents import checkpoint
from engram.kernels.errors import DataError

TENSORS: dict[str, Tensor] = {
    "policy.weight": torch.arange(6.0).view(2, 3),
    "policy.transposed": torch.arange(6.0).view(2, 3).t(),
    "number": torch.tensor(3.5, dtype=torch.float64),
    "flags": torch.tensor([True, False]),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
    "also_none": torch.zeros(0),
}
FACTS: dict[str, Any] = {"steps": 2**40, "seconds": 1.5, "run": {"env": "chain", "list": [1, None]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "runs/first.safetensors"
    checkpoint.write(path, TENSORS, FACTS)
    return path


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )


def test_what_is_written_is_read(path: Path) -> None:
    tensors, facts = checkpoint.read(path)
    assert same(tensors, TENSORS)
    assert facts == FACTS
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tensors_that_share_memory_are_written_each_in_full(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    shared = {"all": base, "again": base, "part": base[3:5], "grid": base.view(3, 4)[1:]}
    checkpoint.write(tmp_path / "file", shared, {})
    assert same(checkpoint.read(tmp_path / "file")[0], shared)


def test_a_parameter_is_written_without_its_gradient(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(2))
    checkpoint.write(tmp_path / "file", {"weight": weight}, {})
    assert not checkpoint.read(tmp_path / "file")[0]["weight"].requires_grad


@pytest.mark.parametrize("where", ["save_file", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(tensors: Any, name: Any = None, **_: Any) -> None:
        if where == "save_file":
            Path(name).write_bytes(b"half a file")
        raise OSError("no space left on device")

    owner: Any = {"save_file": checkpoint, "fsync": os, "replace": Path}[where]
    monkeypatch.setattr(owner, where, fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.write(path, {"other": torch.zeros(1)}, {})
    monkeypatch.undo()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert same(checkpoint.read(path)[0], TENSORS)


def test_facts_that_json_cannot_hold_leave_the_old_file(path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.write(path, {}, {"bad": object()})
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert same(checkpoint.read(path)[0], TENSORS)


def foreign(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        checkpoint.read(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1, -20])
def test_a_truncated_file_is_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"first\.safetensors is damaged"):
        checkpoint.read(path)


def test_a_changed_byte_is_noticed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"first\.safetensors is damaged: .* checksum"):
        checkpoint.read(path)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02}q\x00.", b"\xff" * 200], ids=str)
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"first\.safetensors is damaged"):
        checkpoint.read(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is damaged"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"engram": "{"}, {"engram": "[1]"}, {"engram": "1"}],
    ids=str,
)  # fmt: skip
def test_a_file_of_another_program_is_refused(path: Path, metadata: dict[str, str] | None) -> None:
    foreign(path, metadata)
    with pytest.raises(DataError, match=r"first\.safetensors is "):
        checkpoint.read(path)


@pytest.mark.parametrize("version", [0, 99, None, "1"])
def test_another_format_is_refused(path: Path, version: Any) -> None:
    foreign(path, {"engram": json.dumps({"format": version})})
    with pytest.raises(DataError, match=f"is of another version; allowed: {checkpoint.FORMAT}"):
        checkpoint.read(path)


def test_a_part_is_what_stands_under_a_name() -> None:
    tensors = {"env.world.0": torch.zeros(1), "env": torch.zeros(1), "environment.x": torch.ones(1)}
    assert list(checkpoint.part(tensors, "env")) == ["world.0"]


def test_a_module_takes_what_fits() -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    checkpoint.load_module(target, source.state_dict(), Path("x"))
    assert same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": torch.zeros(3).double()}, r"x: bias is torch.float64; allowed: torch.float32"),
        ({"weight": torch.zeros(2, 2)}, r"x: weight is \[2, 2\]; allowed: \[3, 2\]"),
        ({"bias": None}, r"x: bias is missing; allowed: \[3\]"),
        ({"extra": torch.zeros(1)}, r"x: extra is \[1\]; allowed: nothing of that name"),
    ],
    ids=["type", "shape", "missing", "superfluous"],
)
def test_a_module_names_what_does_not_fit_and_stays_as_it_was(
    change: dict[str, Tensor | None], message: str
) -> None:
    module = nn.Linear(2, 3)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    given = {**{k: v + 1 for k, v in before.items()}, **change}
    with pytest.raises(DataError, match=message):
        checkpoint.load_module(module, {k: v for k, v in given.items() if v is not None}, Path("x"))
    assert same(module.state_dict(), before)
