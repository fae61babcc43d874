"""Street graphs: read from a folder, and contracted to their intersections."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from engram.kernels.errors import DataError

EARTH_RADIUS = 6_371_008.8
"""Mean radius of the Earth [m]."""


class StreetGraph(NamedTuple):
    """Places and the streets between them, walked in both directions.

    Two streets may join the same places, and a street may end where it begins.
    """

    position: Float[np.ndarray, "places 2"]
    """East and north of the city's centre [m], float64."""
    link: Int[np.ndarray, "links 2"]
    """The two places that a street joins, int64."""
    length: Float[np.ndarray, " links"]
    """Length along the street [m], float64."""

    @property
    def degree(self) -> Int[np.ndarray, " places"]:
        """Street ends at each place; a street that ends where it begins counts twice."""
        return np.bincount(self.link.ravel(), minlength=len(self.position))


def load_streets(folder: str | Path) -> StreetGraph:
    """Read the StreetLearn format: `nodes.txt` and `links.txt`.

    A line of nodes is `panoid,yaw,lat,lng`, one of links is `start,heading,end`; angles are in
    degrees, and no line is a header. Positions are projected to the tangent plane at the mean of
    the nodes (local equirectangular; for a city of 10 km the error is below 0.1 %). A link is the
    straight line between its nodes and may be walked both ways, also if only one is listed. Yaw
    and heading are checked and dropped.

    Raises:
        DataError: If a file is missing, empty, cut short or damaged; the message has the line.
    """
    nodes, links = Path(folder, "nodes.txt"), Path(folder, "links.txt")
    index: dict[str, int] = {}
    rows = []
    for line, (name, yaw, latitude, longitude) in _rows(nodes, "panoid,yaw,lat,lng"):
        if name in index:
            raise _damage(nodes, line, f"node {name!r} again", "every node once")
        index[name] = len(rows)
        _number(nodes, line, "yaw", yaw, 360)
        rows.append(
            (
                _number(nodes, line, "latitude", latitude, 90),
                _number(nodes, line, "longitude", longitude, 180),
            )
        )
    pairs: dict[tuple[int, int], None] = {}  # a set that keeps the order of the file
    for line, (start, heading, end) in _rows(links, "start,heading,end"):
        for name in (start, end):
            if name not in index:
                raise _damage(links, line, f"unknown node {name!r}", f"a node of {nodes.name}")
        if start == end:
            raise _damage(links, line, f"{start!r} linked to itself", "two different nodes")
        _number(links, line, "heading", heading, 360)
        a, b = index[start], index[end]
        pairs[(a, b) if a < b else (b, a)] = None
    position = _project(np.array(rows))
    link = np.array(list(pairs), dtype=np.int64)
    ends = position[link]  # [links, 2, 2]
    return StreetGraph(position, link, np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1))


def contract(graph: StreetGraph) -> StreetGraph:
    """Merge every chain of places that only lead on into one street of the same length.

    What stays are the places of a degree other than two: intersections, dead ends and lone places,
    in their order. Chains that join the same two intersections stay apart, and a chain that
    returns to its intersection becomes a street that ends where it begins. A cycle without any
    intersection keeps its first place, with one such street. So total length and all distances
    between kept places are preserved, and contracting again changes nothing.
    """
    incident: list[list[tuple[int, int]]] = [[] for _ in graph.position]
    for link, (a, b) in enumerate(graph.link.tolist()):
        incident[a].append((link, b))
        incident[b].append((link, a))
    lengths = graph.length.tolist()
    kept = [len(around) != 2 for around in incident]
    walked = [False] * len(lengths)
    streets: list[tuple[int, int]] = []
    totals: list[float] = []

    def follow(start: int) -> None:
        for link, place in incident[start]:
            if walked[link]:
                continue
            walked[link] = True
            total = lengths[link]
            while not kept[place]:
                one, other = incident[place]
                link, place = other if one[0] == link else one
                walked[link] = True
                total += lengths[link]
            streets.append((start, place))
            totals.append(total)

    for place in range(len(incident)):
        if kept[place]:
            follow(place)
    for place, around in enumerate(incident):
        if not kept[place] and not walked[around[0][0]]:  # on a cycle without intersections
            kept[place] = True
            follow(place)
    renumbered = np.cumsum(kept) - 1
    link = renumbered[np.array(streets, dtype=np.int64).reshape(-1, 2)]
    return StreetGraph(graph.position[np.array(kept)], link, np.array(totals))


def _project(degrees: Float[np.ndarray, "places 2"]) -> Float[np.ndarray, "places 2"]:
    """Latitude and longitude [deg] to east and north of their mean [m]."""
    # Relative to the first node, so that a city across the 180th meridian stays in one piece.
    turned = (degrees - degrees[0] + 180) % 360 - 180
    centred = np.radians(turned - turned.mean(axis=0))
    east = centred[:, 1] * np.cos(np.radians(degrees[:, 0].mean()))
    return EARTH_RADIUS * np.stack([east, centred[:, 0]], axis=1)


def _rows(path: Path, header: str) -> list[tuple[int, list[str]]]:
    """Number the lines of a comma-separated file from 1 and split them."""
    columns = header.count(",") + 1
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = f"{path} cannot be read ({error.strerror}); expected lines of {header}"
        raise DataError(reason) from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _damage(path, line, f"byte {data[error.start]:#04x}", "UTF-8 text") from error
    *lines, rest = text.replace("\r\n", "\n").split("\n")
    if rest:  # a cut number would still read as a number
        raise _damage(path, len(lines) + 1, "no end of line", "one; the file may be cut short")
    if not lines:
        raise DataError(f"{path} is empty; expected lines of {header}")
    rows = [(number, line.split(",")) for number, line in enumerate(lines, start=1)]
    for number, row in rows:
        if len(row) != columns:
            raise _damage(path, number, f"{len(row)} columns", f"{columns}: {header}")
    return rows


def _number(path: Path, line: int, name: str, text: str, limit: int) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _damage(path, line, f"{name} {text!r}", "a number") from None
    if not -limit <= value <= limit:  # refuses NaN as well
        raise _damage(path, line, f"{name} {text}", f"{-limit} to {limit} degrees")
    return value


def _damage(path: Path, line: int, seen: str, expected: str) -> DataError:
    return DataError(f"{path}, line {line}: {seen}; expected {expected}")
