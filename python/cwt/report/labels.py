"""Places the names of points and lines in a figure so that none lies on another.

Lengths are in the units of the figure (SVG user units); y grows downwards. The width of a text is
estimated from above, as no browser is there to ask.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

SIZE = 13.0  # of the font of a name
LINE = 1.3 * SIZE  # height of the box around a name
_NEAR = 12.0  # at most so far from its point, a name needs no leader
_STEP, _REACH = 8.0, 320.0  # from one distance of a name to the next; the greatest, at least
_WIDTHS = {"fijlrt .,:;!|'`-()[]": 0.42, "EFJLPST": 0.66, "ABCKRVXYZ": 0.7, "DGHNOQUw": 0.82}
_TANGLE = 150.0  # what it costs if leaders cross
_ATTEMPTS = 12  # orders in which names are placed, at most
_DIRECTIONS = sorted(
    ((math.cos(math.pi / 12 * i), math.sin(math.pi / 12 * i)) for i in range(24)),
    key=lambda direction: abs(direction[1]),
)


@dataclass(frozen=True)
class Box:
    """A rectangle with its sides along the axes."""

    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: "Box", gap: float = 0.0) -> bool:
        """Returns whether two boxes are nearer to each other than a gap, in x and in y."""
        return (
            self.left < other.right + gap
            and other.left < self.right + gap
            and self.top < other.bottom + gap
            and other.top < self.bottom + gap
        )

    def within(self, other: "Box") -> bool:
        """Returns whether the box lies inside another."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )

    def distance(self, x: float, y: float) -> float:
        """Returns how far a point is from the box, 0 inside it."""
        dx = max(self.left - x, 0.0, x - self.right)
        dy = max(self.top - y, 0.0, y - self.bottom)
        return math.hypot(dx, dy)


Anchor = Literal["start", "middle", "end"]
Segment = tuple[float, float, float, float]  # x1, y1, x2, y2


@dataclass(frozen=True)
class Placed:
    """Where a name stands.

    Attributes:
        box: around the text, or somewhat wider.
        anchor: which end of the text stands at the same end of its box, as in SVG: start, middle or
            end; the one that is nearest to the point.
        leader: the line from the point to the name, where they are apart.
    """

    box: Box
    anchor: Anchor
    leader: Segment | None


def text_width(text: str, strong: bool = False) -> float:
    """Returns a width that a text of size SIZE does not exceed in the usual sans-serif fonts."""
    return SIZE * sum(map(_character_width, text)) * (1.12 if strong else 1.0)


def _character_width(character: str) -> float:
    """Returns a width in units of the size: that in DejaVu Sans, a wide font, or somewhat more."""
    for characters, width in _WIDTHS.items():
        if character in characters:
            return width
    return 0.64 if character.isascii() and character not in "mMW%@&" else 1.0


def shorten(text: str, width: float) -> str:
    """Returns a text, its end cut off where it is wider than allowed."""
    if text_width(text, strong=True) <= width:
        return text
    while text and text_width(text + "…", strong=True) > width:
        text = text[:-1]
    return text + "…"


def place_labels(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    room: Box,
    radius: float,
    avoid: Sequence[Box] = (),
) -> list[Placed] | None:
    """Returns where the names of some points stand, none on another name or on a point.

    Every name goes to the best free place around its point. A place costs its distance, and more
    where another point is as near, where the name covers one of the boxes to avoid, or where
    leaders cross. Names are placed one after the other, then twice anew, each among all others. Of
    some orders, drawn with a fixed seed, the one that costs least is taken; there are more of them
    as long as leaders cross.

    Args:
        points: (x, y) of each point.
        widths: of each name.
        room: inside which all names must be.
        radius: of the points.
        avoid: what a name covers only if there is nothing better.

    Returns:
        None where there is not room enough for all names.
    """
    rng = random.Random(0)
    order = list(range(len(points)))
    places = [_Places(i, points, widths[i], room, radius, avoid) for i in order]
    best, least = None, math.inf
    for attempt in range(_ATTEMPTS):
        rng.shuffle(order)
        placed, cost = _place_in_order(order, places)
        if cost < least:
            best, least = placed, cost
        if attempt >= _ATTEMPTS // 4 and least < _TANGLE:
            break
    return best


@dataclass(frozen=True)
class _Place:
    """A place that is free as long as no name is there.

    Attributes:
        distance: from the point.
        cost: of the place before other names are looked at.
        placed: the name there.
    """

    distance: float
    cost: float
    placed: Placed


class _Places:
    """The places around a point for its name, the nearest first, each looked at once.

    Args:
        i: index of the point.
        points, width, room, radius, avoid: see `place_labels`; the width is that of its name.
    """

    def __init__(
        self,
        i: int,
        points: Sequence[tuple[float, float]],
        width: float,
        room: Box,
        radius: float,
        avoid: Sequence[Box],
    ) -> None:
        self.point, self.points, self.width = points[i], points, width
        self.rivals = [p for j, p in enumerate(points) if j != i]
        self.room, self.radius, self.avoid = room, radius, avoid
        self.known: list[_Place] = []
        self.more = self._look()

    def __iter__(self) -> Iterator[_Place]:
        yield from self.known
        for place in self.more:
            self.known.append(place)
            yield place

    def _look(self) -> Iterator[_Place]:
        # As far as a room is high, so that one that grows has a place for any number of names.
        reach = max(_REACH, self.room.bottom - self.room.top)
        for distance, box in _boxes(self.point, self.width, self.radius, reach):
            if not box.within(self.room):
                continue
            if any(box.distance(*point) < self.radius + 1 for point in self.points):
                continue
            placed = _anchored(box, self.point, self.rivals, self.radius)
            own = box.distance(*self.point)
            nearer = sum(box.distance(*rival) < min(own, 60.0) for rival in self.rivals)
            covers = sum(box.touches(bar) for bar in self.avoid)
            yield _Place(distance, distance + 10.0 * covers + 20.0 * nearer, placed)


def _place_in_order(
    order: Sequence[int], places: Sequence[_Places]
) -> tuple[list[Placed] | None, float]:
    """Returns where the names stand if they are placed in this order, and what that costs."""
    placed: dict[int, Placed] = {}
    costs: dict[int, float] = {}
    for _ in range(3):
        for i in order:
            others = [p for j, p in placed.items() if j != i]
            best, least = None, math.inf
            for place in places[i]:
                if place.distance >= least:
                    break
                if place.cost >= least or not _free(place.placed.box, others):
                    continue
                cost = place.cost
                for other in others:
                    cost += _TANGLE * _entangled(place.placed, other)
                    if cost >= least:
                        break
                else:
                    best, least = place.placed, cost
            if best is None:
                return None, math.inf
            placed[i], costs[i] = best, least
    return [placed[i] for i in range(len(places))], sum(costs.values())


def _boxes(
    point: tuple[float, float], width: float, radius: float, reach: float
) -> Iterator[tuple[float, Box]]:
    """Yields the boxes around a point, the nearest first; right and left of it come first."""
    x, y = point
    for step in range(math.ceil(reach / _STEP)):
        distance = 4.0 + _STEP * step
        for dx, dy in _DIRECTIONS:
            cx = x + dx * (radius + distance + width / 2)
            cy = y + dy * (radius + distance + LINE / 2)
            yield distance, Box(cx - width / 2, cy - LINE / 2, cx + width / 2, cy + LINE / 2)


def _anchored(
    box: Box, point: tuple[float, float], rivals: Sequence[tuple[float, float]], radius: float
) -> Placed:
    """Returns a name in a box; it needs a leader where it could as well be another point's."""
    x, y = point
    own = box.distance(x, y)
    alone = own <= radius + _NEAR and all(box.distance(*r) > own + 6.0 for r in rivals)
    anchor: Anchor
    if box.left > x:
        anchor, end = "start", (box.left - 2, (box.top + box.bottom) / 2)
    elif box.right < x:
        anchor, end = "end", (box.right + 2, (box.top + box.bottom) / 2)
    else:
        inner = (box.right - box.left) / 4
        height = box.bottom if y > box.top else box.top
        anchor, end = "middle", (min(max(x, box.left + inner), box.right - inner), height)
    return Placed(box, anchor, None if alone else (x, y, *end))


def _free(box: Box, others: Sequence[Placed]) -> bool:
    """Returns whether a box is on no other name."""
    return not any(box.touches(other.box, 2.0) for other in others)


def _entangled(one: Placed, other: Placed) -> bool:
    """Returns whether a leader crosses the other one or runs through the other's name."""
    if one.leader and _runs_through(one.leader, other.box):
        return True
    if other.leader and _runs_through(other.leader, one.box):
        return True
    return bool(one.leader and other.leader and _cross(one.leader, other.leader))


def _runs_through(line: Segment, box: Box) -> bool:
    x1, y1, x2, y2 = line
    if max(x1, x2) < box.left or min(x1, x2) > box.right:
        return False
    if max(y1, y2) < box.top or min(y1, y2) > box.bottom:
        return False
    corners = (box.left, box.top, box.right, box.bottom), (box.left, box.bottom, box.right, box.top)
    return any(_cross(line, diagonal) for diagonal in corners)


def _cross(one: Segment, other: Segment) -> bool:
    ax, ay, bx, by = one
    cx, cy, dx, dy = other

    def side(px: float, py: float, qx: float, qy: float, rx: float, ry: float) -> float:
        return (qx - px) * (ry - py) - (qy - py) * (rx - px)

    apart = side(ax, ay, bx, by, cx, cy) * side(ax, ay, bx, by, dx, dy) < 0
    return apart and side(cx, cy, dx, dy, ax, ay) * side(cx, cy, dx, dy, bx, by) < 0


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns heights near the wanted ones, in their order, each a gap from the next.

    Args:
        wanted: heights.
        gap: least distance of two.
        low: least height of the first.
        high: greatest height of the last.

    Raises:
        ValueError: they have no room between low and high.
    """
    if (len(wanted) - 1) * gap > high - low + 1e-6:
        raise ValueError(f"spread: {len(wanted)} labels {gap} apart, got {low} to {high}.")
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    found = [0.0] * len(wanted)
    least = low
    for i in order:
        found[i] = max(wanted[i], least)
        least = found[i] + gap
    most = high
    for i in reversed(order):
        found[i] = min(found[i], most)
        most = found[i] - gap
    return found
