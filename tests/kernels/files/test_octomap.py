"""OctoMap's files: what OctoMap wrote, bytes by hand, any map there and back, and damage."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from engram.kernels import Insert, VoxelMap, read_octomap, write_octomap
from engram.kernels.errors import DataError, InvalidValueError
from engram.kernels.files import octomap
from engram.kernels.grid import BIAS, morton
from engram.kernels.reference import Reference
from engram.kernels.storage import Storage

GOLDEN = Path(__file__).parent / "golden"

HEAD = (
    b"# Octomap OcTree binary file\n"
    b"# (feel free to add / change comments, but leave the first line as it is!)\n#\n"
    b"id OcTree\n"
)
Voxels = dict[tuple[int, ...], int]
"""Log-odds by coordinates."""


def holding(voxels: Voxels, *, world: int = 0, voxel_size: float = 0.1) -> VoxelMap:
    held = VoxelMap(voxel_size, kernel=Reference())
    cell = torch.tensor([*voxels], dtype=torch.int64).view(-1, 3)
    code = morton(cell + BIAS)
    block, slot = (code >> 9).unique(return_inverse=True)
    held.storage.grow(len(block) + 1)
    held.storage.append(Storage.key(world, block))
    held.storage.log_odds[slot, code & 511] = torch.tensor([*voxels.values()], dtype=torch.int8)
    held.storage.summarise(torch.arange(len(block)), held.evidence.threshold)
    held.kernel.rehash(held.storage)
    return held


def states(held: VoxelMap) -> Voxels:
    """Of each known voxel 1 if occupied, else 0."""
    found = held.nodes(0)
    places = map(tuple, found.node.tolist())
    return dict(zip(places, found.occupied.tolist(), strict=True))


def naive(voxels: Voxels, depth: int = 0) -> tuple[int, int, bytes]:
    """What two bits say of a node, how many nodes it is, and the inner ones, by recursion."""
    if depth == 16:
        (value,) = voxels.values()
        return (2 if value >= 0 else 1), 1, b""
    children: list[Voxels] = [{} for _ in range(8)]
    for (x, y, z), value in voxels.items():
        half = [(each + 32768) >> (15 - depth) & 1 for each in (x, y, z)]
        children[half[0] + 2 * half[1] + 4 * half[2]][x, y, z] = value
    parts = [naive(child, depth + 1) if child else (0, 0, b"") for child in children]
    bits = [part[0] for part in parts]
    if bits in ([1] * 8, [2] * 8):
        return bits[0], 1, b""
    word = sum(each << 2 * child for child, each in enumerate(bits))
    below = b"".join(part[2] for part in parts)
    return 3, 1 + sum(part[1] for part in parts), struct.pack("<H", word) + below


def test_a_file_of_octomap_is_read_and_written_byte_by_byte(kernel: Any, tmp_path: Path) -> None:
    held = read_octomap(GOLDEN / "octomap_room.bt", kernel=kernel())
    recorded = np.load(GOLDEN / "octomap_room.npz")
    assert held.voxel_size == recorded["resolution"]
    voxel = torch.from_numpy(np.stack([recorded[axis] for axis in "xyz"], axis=1))
    seen = held.log_odds(((voxel.double() + 0.5) * held.voxel_size).float())
    expected = np.where(recorded["occupied"], held.evidence.high, held.evidence.low)
    assert np.array_equal(seen.numpy(), expected)
    assert held.stats()["occupied"] + held.stats()["free"] == len(voxel)
    write_octomap(held, tmp_path / "room.bt")
    assert (tmp_path / "room.bt").read_bytes() == (GOLDEN / "octomap_room.bt").read_bytes()


def test_two_bits_say_what_a_child_is(tmp_path: Path) -> None:
    # The origin begins the root's last child, and from there on the first child of each node.
    path = tmp_path / "tree.bt"
    write_octomap(holding({(0, 0, 0): 5, (1, 0, 0): -5, (0, 0, 1): 0}), path)
    chain = [3 << 14, *[3] * 14, 2 | 1 << 2 | 2 << 8]
    expected = b"size 19\nres 0.1\ndata\n" + struct.pack("<16H", *chain)
    assert path.read_bytes() == HEAD + expected
    assert states(read_octomap(path, kernel=Reference())) == {
        (0, 0, 0): 1, (1, 0, 0): 0, (0, 0, 1): 1
    }  # fmt: skip


def test_eight_equal_leaves_are_one(tmp_path: Path) -> None:
    path = tmp_path / "tree.bt"
    # Two blocks of free voxels, with log-odds that differ.
    cube = {(x, y, z): -1 - (x + y) % 9 for x in range(16) for y in range(8) for z in range(8)}
    write_octomap(holding(cube), path)
    # Thirteen inner nodes lead to two leaves of a block each.
    assert path.read_bytes().endswith(struct.pack("<13H", 3 << 14, *[3] * 11, 1 | 1 << 2))
    assert states(read_octomap(path, kernel=Reference())) == dict.fromkeys(cube, 0)
    cube[0, 0, 0] = 1
    write_octomap(holding(cube), path)
    assert path.stat().st_size == len(HEAD + b"size 39\nres 0.1\ndata\n") + 16 * 2


def test_an_empty_world_is_an_empty_tree(tmp_path: Path) -> None:
    path = tmp_path / "tree.bt"
    held = holding({(0, 0, 0): 1}, world=2, voxel_size=0.05)
    write_octomap(held, path, world=1)
    assert path.read_bytes() == HEAD + b"size 0\nres 0.05\ndata\n"
    assert read_octomap(path, kernel=Reference()).storage.count == 0
    write_octomap(held, path, world=2)
    assert states(read_octomap(path, kernel=Reference())) == {(0, 0, 0): 1}


@pytest.mark.parametrize(
    "voxel_size, text", [(1.0, "1"), (1e-5, "1e-05"), (1 / 3, "0.3333333333333333"), (2.5, "2.5")]
)
def test_the_resolution_is_written_as_octomap_does_unless_that_loses_digits(
    voxel_size: float, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "tree.bt"
    write_octomap(VoxelMap(voxel_size, kernel=Reference()), path)
    assert f"\nres {text}\n" in path.read_text()
    assert read_octomap(path, kernel=Reference()).voxel_size == voxel_size


coordinate = st.one_of(st.integers(-20, 20), st.sampled_from([-32768, -32760, 32752]))
cubes = st.tuples(
    st.tuples(coordinate, coordinate, coordinate),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(-54, 95),
)


@given(drawn=st.lists(cubes, max_size=5))
@example(drawn=[((-16, 0, 0), 16, -3), ((0, 0, 0), 16, 4), ((3, 3, 3), 1, -7)])
def test_any_map_is_written_as_the_recursion_does_and_read_back(
    drawn: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    voxels: Voxels = {}
    for corner, size, value in drawn:
        low = [each // size * size for each in corner]  # on the octree's own grid
        cells = np.indices((size,) * 3).reshape(3, -1).T + low
        voxels |= dict.fromkeys(map(tuple, cells.tolist()), value)
    path = tmp_path_factory.mktemp("any") / "tree.bt"
    write_octomap(holding(voxels), path)
    _, nodes, tree = naive(voxels) if voxels else (0, 0, b"")
    assert path.read_bytes() == HEAD + f"size {nodes}\nres 0.1\ndata\n".encode() + tree
    again = read_octomap(path, kernel=Reference())
    assert states(again) == {place: int(value >= 0) for place, value in voxels.items()}


def test_a_map_from_rays_comes_back_and_goes_on(tmp_path: Path) -> None:
    held = VoxelMap(0.1, kernel=Reference())
    held.insert_points(torch.randn(300, 3) * 2, (0.3, 0.1, 0.0))
    write_octomap(held, tmp_path / "tree.bt")
    again = read_octomap(tmp_path / "tree.bt", kernel=Reference())
    assert again.storage.count > 64 and states(again) == states(held)
    again.insert_points(torch.tensor([[9.05, 0.05, 0.05]]), (9.0, 0.0, 0.0), mode=Insert.ENDPOINT)
    assert states(again) == states(held) | {(90, 0, 0): 1}


@pytest.mark.parametrize("place", [(32768, 0, 0), (0, -32769, 0), (0, 0, 200_000)])
def test_a_world_beyond_octomaps_reach_is_refused(place: Any, tmp_path: Path) -> None:
    held = holding({place: 1, (0, 0, 0): 1})
    with pytest.raises(InvalidValueError, match=r"world 0 is .*; allowed: voxels -32768 to 32767"):
        write_octomap(held, tmp_path / "tree.bt")
    assert list(tmp_path.iterdir()) == []


CHAIN = struct.pack("<16H", 3 << 14, *[3] * 14, 1)
TREE = HEAD + b"size 17\nres 0.1\ndata\n" + CHAIN


def test_headers_may_hold_comments_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "tree.bt"
    lines = (
        b"# Octomap OcTree binary file\n\nres  0.1\n# size 3 \xff\nsize\t17\r\n#\nid OcTree\ndata\n"
    )
    for content in (TREE, lines + CHAIN):
        path.write_bytes(content)
        assert states(read_octomap(path, kernel=Reference())) == {(0, 0, 0): 0}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "it begins with b''; allowed: '# Octomap OcTree binary file'"),
        (TREE.replace(b" binary", b""), "it begins with b'# Octomap OcTree file'"),
        (TREE[: len(HEAD) + 8], "does not end with a line 'data'"),
        (TREE.replace(b"id OcTree", b"id ColorOcTree"), "id is 'ColorOcTree'; allowed: 'OcTree'"),
        (TREE.replace(b"id OcTree\n", b""), "id is None; allowed: 'OcTree'"),
        (TREE.replace(b"id OcTree", b"colour red"), "its header has 'colour'; allowed: id, size"),
        (TREE.replace(b"id OcTree", b"id \xff"), "id is '\ufffd'; allowed"),
        (TREE.replace(b"res 0.1", b"res nan"), "res is nan; allowed: finite numbers above 0"),
        (TREE.replace(b"res 0.1", b"res inf"), "res is inf"),
        (TREE.replace(b"res 0.1", b"res -0.1"), "res is -0.1"),
        (TREE.replace(b"res 0.1", b"res wide"), "size is '17' and res 'wide'"),
        (TREE.replace(b"res 0.1\n", b""), "res None; allowed: a whole number and a number"),
        (TREE.replace(b"size 17", b"size 9.5"), "size is '9.5'"),
        (TREE.replace(b"size 17", b"size 18"), "size is 18; allowed: 17, the nodes that it holds"),
        (TREE[:-32], "size is 17; allowed: 0"),
        (TREE[:-1], "it ends within a node"),
        (TREE[:-2], "it ends where 1 more nodes are due"),
        (TREE + b"\1\0\1\0", "it goes on for 2 nodes after its last"),
        (TREE[:-2] + b"\0\0", "inner node 15 has no child"),
        (TREE[:-2] + b"\3\0\1\0", "1 nodes have children deeper than 16 levels"),
        (HEAD + b"size 2\nres 1\ndata\n\1\0", "unfolds to 68719476736 blocks .*up to 2097152"),
    ],
)
def test_a_damaged_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tree.bt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"tree\.bt is no readable binary OctoMap: .*{message}"):
        read_octomap(path, kernel=Reference())


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        read_octomap(tmp_path / "absent", kernel=Reference())


@given(at=st.integers(0, 1562), byte=st.integers(0, 255), cut=st.sampled_from([0, 1, 2, 500]))
def test_no_damage_is_worse_than_refused(
    at: int, byte: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray((GOLDEN / "octomap_room.bt").read_bytes())
    content[at] = byte
    path = tmp_path_factory.mktemp("damaged") / "tree.bt"
    path.write_bytes(content[: len(content) - cut])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(octomap, "MOST_BLOCKS", 4096)
        try:
            held = read_octomap(path, kernel=Reference())
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert held.storage.count <= 4096 and held.voxel_size > 0
