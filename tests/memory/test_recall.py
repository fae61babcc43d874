"""The seam between stores and neural memories."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from engram.memory.stores import Recall, Store


class Latest:
    """The smallest store: the last `capacity` vectors of every world, newest first."""

    def __init__(self, worlds: int, capacity: int, size: int):
        self.capacity, self.size = capacity, size
        self.rows: list[list[Tensor]] = [[] for _ in range(worlds)]

    def write(self, world: Tensor, record: Tensor) -> None:
        for w, row in zip(world.tolist(), record, strict=True):
            self.rows[w] = [row, *self.rows[w]][: self.capacity]

    def read(self, world: Tensor, query: Tensor, k: int) -> Recall:
        value = torch.zeros(len(world), k, self.size)
        valid = torch.zeros(len(world), k, dtype=torch.bool)
        for n, w in enumerate(world.tolist()):
            for place, row in enumerate(self.rows[w][:k]):
                value[n, place], valid[n, place] = row, True
        return Recall(value, value, valid)

    def clear(self, worlds: Tensor) -> None:
        self.rows = [
            [] if gone else rows for gone, rows in zip(worlds.tolist(), self.rows, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for rows in self.rows for row in rows)

    def save(self, path: Path) -> None:
        arrays = {str(w): np.array([row.numpy() for row in r]) for w, r in enumerate(self.rows)}
        with path.open("wb") as file:
            np.savez(file, **arrays)

    def load(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            self.rows = [[torch.tensor(row) for row in file[name]] for name in file.files]


def best(store: Store[Tensor, Tensor], world: int, k: int) -> Recall:
    """Take any store: the Protocol is all that its users know."""
    return store.read(torch.tensor([world]), torch.zeros(1, 2), k)


def test_a_store_needs_no_base_class(tmp_path: Path) -> None:
    store = Latest(worlds=2, capacity=2, size=2)
    for step in range(3):
        store.write(torch.tensor([0, 1]), torch.full((2, 2), float(step)))
    recall = best(store, 0, k=3)
    assert recall.value[0, :, 0].tolist() == [2.0, 1.0, 0.0]
    assert recall.valid.tolist() == [[True, True, False]]
    assert store.nbytes == 2 * 2 * 2 * 4
    store.save(tmp_path / "store.npz")
    store.clear(torch.tensor([True, False]))
    assert not best(store, 0, k=2).valid.any() and best(store, 1, k=2).valid.all()
    store.load(tmp_path / "store.npz")
    assert best(store, 0, k=2).valid.all()


def test_recall_is_a_view_of_fixed_shape() -> None:
    recall = Recall(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.bool))
    assert recall._fields == ("key", "value", "valid")
    shapes = [annotation.dim_str for annotation in Recall.__annotations__.values()]
    assert shapes == ["N K D", "N K E", "N K"]


@pytest.mark.parametrize("missing", ["write", "read", "clear", "nbytes", "save", "load"])
def test_the_protocol_names_what_every_store_offers(missing: str) -> None:
    assert hasattr(Store, missing)
    assert "capacity" in Store.__annotations__
