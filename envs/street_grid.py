"""A generated city of blocks, and a writer of street graphs: what runs where no data is."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np

from engram.envs.street_graph import EARTH_RADIUS, StreetGraph
from engram.kernels.errors import InvalidValueError


def grid_city(
    rows: int,
    columns: int,
    seed: int,
    *,
    block: float = 100.0,
    missing: float = 0.15,
    jitter: float = 15.0,
) -> StreetGraph:
    """Lay out `rows` x `columns` places on a grid, then move them and take streets away.

    Every place can still be reached from every other one.

    Args:
        rows: Places from south to north.
        columns: Places from west to east.
        seed: Decides all that is random.
        block: Side of a block [m].
        missing: Share of the streets to take away; less where the city would fall apart.
        jitter: Largest move of a place along each axis [m], less than half a block.
    """
    if rows < 1 or columns < 1 or rows * columns < 2:
        raise InvalidValueError("(rows, columns)", (rows, columns), "two places or more")
    if not 0 <= missing <= 1:
        raise InvalidValueError("missing", missing, "0 to 1")
    if not 0 <= jitter < block / 2:
        raise InvalidValueError("jitter", jitter, f"0 to less than half a block of {block} m")
    random = np.random.default_rng(seed)
    place = np.arange(rows * columns).reshape(rows, columns)
    eastward = np.stack([place[:, :-1].ravel(), place[:, 1:].ravel()], axis=1)
    northward = np.stack([place[:-1].ravel(), place[1:].ravel()], axis=1)
    link = random.permutation(np.concatenate([eastward, northward]))
    # Kruskal's spanning tree: a street that first joins two parts of the city must stay.
    part = list(range(place.size))
    spare = []
    for index, (a, b) in enumerate(link.tolist()):
        root_a, root_b = _root(part, a), _root(part, b)
        if root_a == root_b:
            spare.append(index)
        part[root_a] = root_b
    link = np.delete(link, spare[: round(missing * len(link))], axis=0)
    link = link[np.lexsort(link.T[::-1])]
    row, column = np.divmod(np.arange(place.size), columns)
    middle = [(columns - 1) / 2, (rows - 1) / 2]
    position = block * (np.stack([column, row], axis=1) - middle)
    position += random.uniform(-jitter, jitter, position.shape)
    return StreetGraph(position, link, _chord(position, link))


def save_streets(
    graph: StreetGraph,
    folder: str | Path,
    *,
    spacing: float = 10.0,
    latitude: float = 40.73,
    longitude: float = -74.0,
) -> None:
    """Write a graph of straight streets as `load_streets` reads it.

    Every street gets panoramas in between, one at least, so that reading and contracting gives the
    graph back. Lines are listed in both directions; coordinates are exact to about a millimetre.

    Args:
        graph: The streets.
        folder: Where `nodes.txt` and `links.txt` go.
        spacing: Largest distance between panoramas [m].
        latitude: Of the city's centre [deg].
        longitude: Of the city's centre [deg].
    """
    bent = ~np.isclose(graph.length, _chord(graph.position, graph.link), rtol=1e-6, atol=1e-6)
    if bent.any():
        raise InvalidValueError("graph", f"{bent.sum()} bent streets", "straight streets")
    names = [f"place-{index}" for index in range(len(graph.position))]
    positions = [graph.position]
    links = []
    for street, ((a, b), length) in enumerate(zip(graph.link.tolist(), graph.length, strict=True)):
        east, north = graph.position[b] - graph.position[a]
        heading = round(math.degrees(math.atan2(east, north))) % 360
        pieces = max(2, math.ceil(length / spacing))
        share = np.arange(1, pieces)[:, None] / pieces
        positions.append(graph.position[a] * (1 - share) + graph.position[b] * share)
        between = [f"street-{street}-{piece}" for piece in range(1, pieces)]
        chain = [names[a], *between, names[b]]
        names += between
        for start, end in pairwise(chain):
            links += [f"{start},{heading},{end}\n", f"{end},{(heading + 180) % 360},{start}\n"]
    east, north = np.degrees(np.concatenate(positions) / EARTH_RADIUS).T
    longitudes = longitude + east / math.cos(math.radians(latitude))
    nodes = [
        f"{name},0,{lat:.8f},{lng:.8f}\n"
        for name, lat, lng in zip(names, latitude + north, longitudes, strict=True)
    ]
    Path(folder, "nodes.txt").write_text("".join(nodes), encoding="utf-8")
    Path(folder, "links.txt").write_text("".join(links), encoding="utf-8")


def _root(part: list[int], place: int) -> int:
    while part[place] != place:
        part[place] = place = part[part[place]]
    return place


def _chord(position: np.ndarray, link: np.ndarray) -> np.ndarray:
    """Straight distances between the ends of the links [m]."""
    ends = position[link]
    return np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
