"""Street graphs: the real Manhattan, its generated twin, damaged files, and neighbourhoods."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram.envs.street_graph import EARTH_RADIUS, StreetGraph, contract, load_streets
from engram.envs.street_grid import grid_city, save_streets
from engram.envs.street_neighbourhoods import sample_neighbourhoods, split_city
from engram.kernels.errors import DataError, InvalidValueError


@pytest.fixture(scope="module")
def manhattan(shared_data: Path) -> StreetGraph:
    folder = shared_data / "manhattan"
    if not folder.is_dir():
        pytest.skip(f"no street graph: {shared_data.name} has no folder 'manhattan'")
    return load_streets(folder)


def graph_of(position: list, link: list, length: list | None = None) -> StreetGraph:
    """Straight streets unless lengths are given."""
    places, links = np.array(position, dtype=float), np.array(link).reshape(-1, 2)
    chord = np.linalg.norm(places[links[:, 0]] - places[links[:, 1]], axis=1)
    return StreetGraph(places, links, chord if length is None else np.array(length, dtype=float))


def metres_between_all(graph: StreetGraph) -> np.ndarray:
    """Distances along the streets (Floyd and Warshall)."""
    count = len(graph.position)
    metres = np.full((count, count), np.inf)
    np.fill_diagonal(metres, 0)
    for (a, b), length in zip(graph.link, graph.length, strict=True):
        metres[a, b] = metres[b, a] = min(metres[a, b], length)
    for via in range(count):
        metres = np.minimum(metres, metres[:, via, None] + metres[via])
    return metres


def test_manhattan_has_its_intersections(manhattan: StreetGraph):
    # Three links are listed one way only and still count as streets in both directions.
    degrees = dict(enumerate(np.bincount(manhattan.degree).tolist()))
    assert degrees == {0: 0, 1: 214, 2: 28_053, 3: 499, 4: 870, 5: 5}
    assert manhattan.link.shape == (30_661, 2)
    assert np.median(manhattan.length) == pytest.approx(9.98, abs=0.02)
    east, north = np.ptp(manhattan.position, axis=0)
    assert (round(east), round(north)) == (2394, 6421)


def test_contracted_manhattan_keeps_its_length(manhattan: StreetGraph):
    city = contract(manhattan)
    assert np.bincount(city.degree).tolist() == [0, 214, 0, 499, 870, 5]
    assert city.length.sum() == pytest.approx(manhattan.length.sum(), rel=1e-12)
    assert len(city.link) == (214 + 3 * 499 + 4 * 870 + 5 * 5) / 2


def test_manhattan_has_disjoint_pools(manhattan: StreetGraph):
    city = contract(manhattan)
    check_pools(city, train=256, evaluation=64)


def test_generated_city_has_disjoint_pools():
    check_pools(contract(grid_city(24, 24, 0)), train=256, evaluation=64)


def check_pools(city: StreetGraph, *, train: int, evaluation: int) -> None:
    sides = split_city(city)
    pools = [
        sample_neighbourhoods(city, side, places=8, pool=pool, seed=0)
        for side, pool in zip(sides, (train, evaluation), strict=True)
    ]
    used = [set(pool.intersection.ravel().tolist()) for pool in pools]
    assert not used[0] & used[1]
    assert len(used[0]) > len(used[1]) > 64
    for (members, neighbour, length, hops, exit_), side in zip(pools, sides, strict=True):
        assert np.isin(members, side).all()
        assert len({tuple(sorted(row)) for row in members.tolist()}) == len(members)
        exists = neighbour >= 0
        assert (length >= 0).all() and not length[~exists].any()
        assert ((hops > 0) == ~np.eye(8, dtype=bool)).all() and (hops < 8).all()  # connected
        assert (hops == hops.transpose(0, 2, 1)).all()
        for pool, place, way in np.argwhere(exists):
            there = neighbour[pool, place, way]
            back = np.flatnonzero(neighbour[pool, there] == place)
            assert len(back) == 1 and there != place
            assert length[pool, there, back[0]] == length[pool, place, way]
        pool, here, goal = np.argwhere(hops > 0).T
        ahead = neighbour[pool, here, exit_[pool, here, goal]]
        assert (hops[pool, ahead, goal] == hops[pool, here, goal] - 1).all()


def test_a_written_city_is_read_back(tmp_path: Path):
    city = grid_city(5, 7, 3, missing=0.2)
    save_streets(city, tmp_path, spacing=9.0)
    read = load_streets(tmp_path)
    assert np.bincount(read.degree)[2] > 400
    assert read.length.max() < 9.001
    # Two corners lead on only: the same contraction applies to the city as it was written.
    contracted, expected = contract(read), contract(city)
    shift = expected.position[0] - contracted.position[0]
    # cos(latitude) is taken at the mean of the nodes, a few metres from where it was written.
    np.testing.assert_allclose(contracted.position + shift, expected.position, atol=0.02)
    np.testing.assert_allclose(contracted.length, expected.length, rtol=1e-4)
    np.testing.assert_array_equal(contracted.link, expected.link)


def test_positions_are_metres_east_and_north(tmp_path: Path):
    # One thousandth of a degree at 60 degrees north is half as long to the east as to the north.
    nodes = "a,0,60.0,179.9995\nb,0,60.001,179.9995\nc,0,60.0,-179.9995\n"
    (tmp_path / "nodes.txt").write_text(nodes, encoding="utf-8")
    (tmp_path / "links.txt").write_text("a,0,b\r\nb,180,a\r\na,90,c\r\n", encoding="utf-8")
    graph = load_streets(tmp_path)
    unit = EARTH_RADIUS * np.pi / 180_000
    np.testing.assert_allclose(graph.position[1] - graph.position[0], [0, unit], atol=1e-3)
    np.testing.assert_allclose(graph.position[2] - graph.position[0], [unit / 2, 0], atol=1e-3)
    assert graph.link.tolist() == [[0, 1], [0, 2]]
    np.testing.assert_allclose(graph.length, [unit, unit / 2], atol=1e-3)


NODES = "a,0,40.0,-74.0\nb,0,40.001,-74.0\nc,0,40.002,-74.0\n"
LINKS = "a,0,b\nb,0,c\n"


@pytest.mark.parametrize(
    ("nodes", "links", "message"),
    [
        ("", LINKS, "nodes.txt is empty; expected lines of panoid,yaw,lat,lng"),
        (NODES, "", "links.txt is empty; expected lines of start,heading,end"),
        (None, LINKS, "nodes.txt cannot be read (No such file or directory); expected lines of "),
        (NODES, None, "links.txt cannot be read (No such file or directory); expected lines of "),
        (NODES + "d,0,40.0\n", LINKS, "nodes.txt, line 4: 3 columns; expected 4: panoid,yaw,"),
        ("\n" + NODES, LINKS, "nodes.txt, line 1: 1 columns; expected 4"),
        (NODES, LINKS + "a,0,b,c\n", "links.txt, line 3: 4 columns; expected 3: start,heading,end"),
        (NODES + "d,0,north,0\n", LINKS, "nodes.txt, line 4: latitude 'north'; expected a number"),
        (NODES + "d,x,40,-74\n", LINKS, "nodes.txt, line 4: yaw 'x'; expected a number"),
        (NODES, "a,0,b\nb,east,c\n", "links.txt, line 2: heading 'east'; expected a number"),
        (NODES + "d,0,90.5,0\n", LINKS, "nodes.txt, line 4: latitude 90.5; expected -90 to 90"),
        (NODES + "d,0,nan,0\n", LINKS, "nodes.txt, line 4: latitude nan; expected -90 to 90"),
        (NODES + "d,0,4,181\n", LINKS, "nodes.txt, line 4: longitude 181; expected -180 to 180"),
        (NODES + "a,0,4,18\n", LINKS, "nodes.txt, line 4: node 'a' again; expected every node"),
        (NODES, "a,0,b\nb,0,z\n", "links.txt, line 2: unknown node 'z'; expected a node of nodes"),
        (NODES, "b,0,b\n", "links.txt, line 1: 'b' linked to itself; expected two different"),
        (NODES[:-3], LINKS, "nodes.txt, line 3: no end of line; expected one; the file may be cut"),
        (b"a,0,40.0,-74.0\nb\xff,0,40,-74\n", LINKS, "nodes.txt, line 2: byte 0xff; expected UTF"),
        (bytes(64), LINKS, "nodes.txt, line 1: no end of line"),
    ],
)
def test_a_damaged_file_is_refused(
    tmp_path: Path, nodes: str | bytes | None, links: str | None, message: str
):
    for name, content in (("nodes.txt", nodes), ("links.txt", links)):
        if content is not None:
            raw = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError) as error:
        load_streets(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_contraction_by_hand():
    # 0 - 1 - 2 with a second way 0 - 3 - 2, a loop 2 - 4 - 5 - 2, an isolated triangle 6, 7, 8,
    # a lone place 9 and a dead end 10 at 0.
    position = [[float(place), 0.0] for place in range(11)]
    link = [[0, 1], [1, 2], [0, 3], [3, 2], [2, 4], [4, 5], [5, 2], [6, 7], [7, 8], [8, 6], [0, 10]]
    length = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    city = contract(graph_of(position, link, length))
    assert city.position[:, 0].tolist() == [0, 2, 6, 9, 10]
    streets = sorted(
        (*sorted(ends), metres)
        for ends, metres in zip(city.link.tolist(), city.length.tolist(), strict=True)
    )
    assert streets == [(0, 1, 3), (0, 1, 12), (0, 4, 1024), (1, 1, 112), (2, 2, 896)]


@st.composite
def graphs(draw: st.DrawFn) -> StreetGraph:
    """Any few streets, among them parallel ones and some that end where they begin."""
    places = draw(st.integers(1, 9))
    ends = st.tuples(st.integers(0, places - 1), st.integers(0, places - 1))
    link = draw(st.lists(ends, max_size=12))
    length = draw(st.lists(st.integers(1, 99), min_size=len(link), max_size=len(link)))
    link_array = np.array(link, dtype=np.int64).reshape(-1, 2)
    position = np.stack([np.arange(places), np.zeros(places)], axis=1).astype(float)
    return StreetGraph(position, link_array, np.array(length, dtype=float))


@given(graphs())
def test_contraction_keeps_length_distances_and_itself(graph: StreetGraph):
    city = contract(graph)
    assert city.length.sum() == graph.length.sum()
    kept = city.position[:, 0].astype(int)
    assert set(np.flatnonzero(graph.degree != 2)) <= set(kept)
    np.testing.assert_array_equal(
        metres_between_all(city), metres_between_all(graph)[np.ix_(kept, kept)]
    )
    again = contract(city)
    for one, other in zip(city, again, strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.integers(1, 6), st.integers(2, 6), st.integers(0, 99), st.floats(0, 1))
def test_a_grid_city_is_connected(rows: int, columns: int, seed: int, missing: float):
    city = grid_city(rows, columns, seed, missing=missing)
    assert len(city.position) == rows * columns
    assert np.isfinite(metres_between_all(city)).all()
    every = rows * (columns - 1) + columns * (rows - 1)
    assert len(city.link) == max(rows * columns - 1, every - round(missing * every))
    other = grid_city(rows, columns, seed, missing=missing)
    np.testing.assert_array_equal(city.position, other.position)
    np.testing.assert_array_equal(city.link, other.link)


def test_exits_follow_the_streets_of_the_neighbourhood():
    # A cross turned by 29 degrees like Manhattan, with its centre as place 0.
    turn = np.radians(29)
    arms = [[np.sin(turn + k * np.pi / 2), np.cos(turn + k * np.pi / 2)] for k in range(4)]
    city = graph_of([[0, 0], *arms], [[0, 1], [0, 2], [0, 3], [0, 4]])
    found = sample_neighbourhoods(city, np.arange(5), places=5, pool=1, seed=0)
    centre = found.intersection[0].tolist().index(0)
    behind = found.intersection[0, found.neighbour[0, centre]]
    assert behind.tolist() == [1, 2, 3, 4]
    for arm, opposite in zip(range(1, 5), (2, 3, 0, 1), strict=True):
        place = found.intersection[0].tolist().index(arm)
        expected = [-1] * 4
        expected[opposite] = centre
        assert found.neighbour[0, place].tolist() == expected


def test_streets_that_leave_alike_get_exits_of_their_own():
    # Three streets to the north by 10 degrees of each other: west, north, east, from left.
    around = [[np.sin(np.radians(a)), np.cos(np.radians(a))] for a in (-10, 0, 10)]
    city = graph_of([[0, 0], *around], [[0, 1], [0, 2], [0, 3]])
    found = sample_neighbourhoods(city, np.arange(4), places=4, pool=1, seed=0)
    centre = found.intersection[0].tolist().index(0)
    north, east, south, west = found.neighbour[0, centre]
    assert south == -1
    assert found.intersection[0, [west, north, east]].tolist() == [1, 2, 3]


def test_a_fifth_street_is_dropped_only_where_the_rest_hangs_together():
    angles = np.radians([0, 72, 144, 216, 288])
    ring = [[(1 + i / 10) * np.sin(a), (1 + i / 10) * np.cos(a)] for i, a in enumerate(angles)]
    star = [[0, i] for i in range(1, 6)]
    with pytest.raises(InvalidValueError, match="pool is 1; allowed: up to 0"):
        sample_neighbourhoods(
            graph_of([[0, 0], *ring], star), np.arange(6), places=6, pool=1, seed=0
        )
    city = graph_of([[0, 0], *ring], [*star, [1, 5]])
    found = sample_neighbourhoods(city, np.arange(6), places=6, pool=1, seed=0)
    assert (found.neighbour >= 0).sum() == 2 * 5
    centre, longest = (found.intersection[0].tolist().index(place) for place in (0, 5))
    assert longest not in found.neighbour[0, centre]
    assert found.hops[0, centre, longest] == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"places": 1}, "places is 1"), ({"pool": 0}, "pool is 0"), ({"pool": 9}, "up to 1, as")],
)
def test_a_neighbourhood_that_cannot_be_is_refused(setting: dict, message: str):
    city = grid_city(2, 2, 0, missing=0.0)
    arguments = {"places": 4, "pool": 1, **setting}
    with pytest.raises(InvalidValueError, match=message):
        sample_neighbourhoods(city, np.arange(4), seed=0, **arguments)


def test_a_generated_city_that_cannot_be_is_refused(tmp_path: Path):
    with pytest.raises(InvalidValueError, match="two places or more"):
        grid_city(1, 1, 0)
    with pytest.raises(InvalidValueError, match=r"missing is 2\.0"):
        grid_city(3, 3, 0, missing=2.0)
    with pytest.raises(InvalidValueError, match="half a block"):
        grid_city(3, 3, 0, jitter=50.0)
    with pytest.raises(InvalidValueError, match="straight streets"):
        save_streets(graph_of([[0, 0], [1, 0]], [[0, 1]], [2.0]), tmp_path)
