"""Neighbourhoods cut out of a city: a few intersections, with an exit by compass per street."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from engram.envs.street_graph import StreetGraph
from engram.kernels.errors import InvalidValueError

EXITS = 4
"""North, east, south and west of a neighbourhood, in this order."""
EVALUATION_SHARE = 0.25
"""Share of the city's intersections that training never sees."""
TRIES = 200
"""Neighbourhoods tried in a row without a new one before the city counts as too small."""
_ORDERS = np.array(list(permutations(range(EXITS))))


class Neighbourhoods(NamedTuple):
    """K connected pieces of a city, of P places each."""

    intersection: Int[np.ndarray, "K P"]
    """Which place of the city it is, int64."""
    neighbour: Int[np.ndarray, "K P 4"]
    """Place behind each exit, -1 where there is none, int64."""
    length: Float[np.ndarray, "K P 4"]
    """Length of the street behind each exit [m], 0 where there is none, float32."""
    hops: Int[np.ndarray, "K P P"]
    """Streets on a shortest path from one place to another, int64."""
    exit: Int[np.ndarray, "K P P"]
    """Exit that begins such a path, the first if several do; void from a place to itself; int64."""


class _Edge(NamedTuple):
    one: int
    other: int
    length: float


def split_city(
    graph: StreetGraph,
) -> tuple[Int[np.ndarray, " training"], Int[np.ndarray, " evaluation"]]:
    """Cut a city in two by one straight line and return the places on either side.

    The line crosses the longer of the city's two extents, and the northern (or eastern) quarter
    of the places is for evaluation.
    """
    along = graph.position[:, np.ptp(graph.position, axis=0).argmax()]
    order = along.argsort(kind="stable")
    cut = round(len(order) * (1 - EVALUATION_SHARE))
    return np.sort(order[:cut]), np.sort(order[cut:])


def sample_neighbourhoods(
    graph: StreetGraph, allowed: Int[np.ndarray, " allowed"], *, places: int, pool: int, seed: int
) -> Neighbourhoods:
    """Draw `pool` different neighbourhoods of `places` places among the allowed ones.

    A neighbourhood grows from a random place by one random adjacent place at a time, and has all
    streets between its places but three kinds: those that end where they begin, all but the
    shortest of those that join the same two places, and the longest of a place with more than
    four where the rest stays connected (elsewhere the neighbourhood is discarded).

    North is where the streets of the neighbourhood point rather than the pole: the direction of
    a square grid that fits its streets best, at most 45 degrees from true north. Every street
    leaves by an exit of its own, so that the sum of squared angles between streets and exits is
    the least possible; angles are those of the straight lines between the two ends.

    Raises:
        InvalidValueError: If the city has too few such neighbourhoods.
    """
    if places < 2:
        raise InvalidValueError("places", places, "2 or more")
    if pool < 1:
        raise InvalidValueError("pool", pool, "1 or more")
    random = np.random.default_rng(seed)
    streets = _shortest_streets(graph, set(allowed.tolist()))
    seeds = sorted(streets)
    found: dict[frozenset[int], tuple[list[int], np.ndarray, np.ndarray]] = {}
    missed = 0
    while seeds and len(found) < pool and missed < TRIES:
        missed += 1
        members = _grow(streets, seeds[random.integers(len(seeds))], places, random)
        if members is None or frozenset(members) in found:
            continue
        edges = _at_most_four(_edges_between(streets, members), places)
        if edges is not None:
            tables = _assign_exits(graph.position[members], edges)
            found[frozenset(members)] = members, *tables
            missed = 0
    if len(found) < pool:
        raise InvalidValueError(
            "pool", pool, f"up to {len(found)}, as found in this city with places={places}"
        )
    members, neighbour, length = zip(*found.values(), strict=True)
    hops, exit_ = _shortest_paths(np.stack(neighbour))
    return Neighbourhoods(np.array(members), np.stack(neighbour), np.stack(length), hops, exit_)


def _shortest_streets(graph: StreetGraph, allowed: set[int]) -> dict[int, dict[int, float]]:
    """Lengths by start and end, of the streets between two different allowed places."""
    streets: dict[int, dict[int, float]] = {}
    for (a, b), length in zip(graph.link.tolist(), graph.length.tolist(), strict=True):
        if a != b and a in allowed and b in allowed:
            for start, end in ((a, b), (b, a)):
                around = streets.setdefault(start, {})
                around[end] = min(length, around.get(end, length))
    return streets


def _grow(
    streets: dict[int, dict[int, float]], start: int, places: int, random: np.random.Generator
) -> list[int] | None:
    """Add a random adjacent place until there are enough; None if they run out."""
    members, border = [start], sorted(streets[start])
    while len(members) < places:
        if not border:
            return None
        place = border.pop(random.integers(len(border)))
        members.append(place)
        border += sorted(set(streets[place]).difference(members, border))
    return members


def _edges_between(streets: dict[int, dict[int, float]], members: list[int]) -> list[_Edge]:
    return [
        _Edge(one, other, streets[place][members[other]])
        for one, place in enumerate(members)
        for other in range(one + 1, len(members))
        if members[other] in streets[place]
    ]


def _at_most_four(edges: list[_Edge], places: int) -> list[_Edge] | None:
    """Drop the longest edges of crowded places; None if that would cut the neighbourhood."""
    for place in range(places):
        around = sorted((e for e in edges if place in e[:2]), key=lambda e: -e.length)
        for surplus in around[: max(0, len(around) - EXITS)]:
            edges = [edge for edge in edges if edge is not surplus]
    return edges if _connected(edges, places) else None


def _connected(edges: Sequence[_Edge], places: int) -> bool:
    reached = {0}
    for _ in range(places):
        for one, other, _ in edges:
            if one in reached or other in reached:
                reached |= {one, other}
    return len(reached) == places


def _assign_exits(
    position: Float[np.ndarray, "P 2"], edges: list[_Edge]
) -> tuple[Int[np.ndarray, "P 4"], Float[np.ndarray, "P 4"]]:
    """Give every edge an exit at both of its ends; return the places and lengths behind exits."""
    neighbour = np.full((len(position), EXITS), -1, dtype=np.int64)
    length = np.zeros((len(position), EXITS), dtype=np.float32)
    both = edges + [_Edge(other, one, metres) for one, other, metres in edges]
    start, end = np.array([edge[:2] for edge in both]).T
    metres = np.array([edge.length for edge in both])
    east, north = (position[end] - position[start]).T
    bearing = np.arctan2(east, north)
    # Four times an angle is the same for all four directions of a grid, so that they add up.
    axis = np.angle((metres * np.exp(4j * bearing)).sum()) / 4
    off = bearing[:, None] - axis - np.arange(EXITS) * np.pi / 2
    cost = np.angle(np.exp(1j * off)) ** 2  # [edges, exits]
    for place in range(len(position)):
        (leaving,) = np.nonzero(start == place)
        orders = _ORDERS[:, : len(leaving)]
        best = orders[cost[leaving, orders].sum(axis=1).argmin()]
        neighbour[place, best] = end[leaving]
        length[place, best] = metres[leaving]
    return neighbour, length


def _shortest_paths(
    neighbour: Int[np.ndarray, "K P 4"],
) -> tuple[Int[np.ndarray, "K P P"], Int[np.ndarray, "K P P"]]:
    """Return hops between all pairs (Floyd and Warshall) and the exits that begin the paths."""
    pool, places, _ = neighbour.shape
    hops = np.full((pool, places, places + 1), places, dtype=np.int64)
    rows = np.arange(pool)[:, None, None]
    hops[rows, np.arange(places)[:, None], neighbour] = 1  # -1 goes to the spare last column
    hops = hops[:, :, :places]
    hops[:, np.arange(places), np.arange(places)] = 0
    for via in range(places):
        hops = np.minimum(hops, hops[:, :, via, None] + hops[:, None, via])
    ahead = np.where(neighbour[..., None] < 0, places, hops[rows, neighbour])  # [K, P, 4, P]
    return hops, ahead.argmin(axis=2)
