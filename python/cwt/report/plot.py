"""The figures of the report page as plain geometry, which plot.svg.j2 draws.

Lengths are in SVG user units; y grows downwards.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cwt.report.labels import LINE, SIZE, Box, Placed, place_labels, shorten, spread, text_width

RADIUS = 5.0  # of a point
POINTS = 60  # of a curve
BASELINE = LINE - SIZE  # of a text, above the lower side of the box around it


@dataclass(frozen=True)
class Tick:
    """A place on an axis and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Label:
    """A text: x is its end that `anchor` names, y its baseline; a leader ties it to its point."""

    x: float
    y: float
    anchor: str
    text: str
    leader: tuple[float, float, float, float] | None


@dataclass(frozen=True)
class Frame:
    """The size of a figure, the area inside its axes, and the axes."""

    width: float
    height: float
    area: Box
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_title: str
    y_title: str


@dataclass(frozen=True)
class Point:
    """A row of the table: its accuracy, the interval around it, and its name.

    Attributes:
        x: of the point.
        y: of the point.
        low: y of the lower end of the interval.
        high: y of the upper end.
        label: its name.
        said: what a reader is told who points at it.
        strong: whether the headline speaks of it.
    """

    x: float
    y: float
    low: float
    high: float
    label: Label
    said: str
    strong: bool


@dataclass(frozen=True)
class Scatter:
    """Accuracy against tokens."""

    frame: Frame
    points: list[Point]


@dataclass(frozen=True)
class Curve:
    """One line, or one band of a stack.

    Attributes:
        path: in the language of the SVG attribute `d`.
        hue: in degrees; None for the answer.
        label: its name.
    """

    path: str
    hue: float | None
    label: Label


@dataclass(frozen=True)
class Curves:
    """One figure by chunk.

    Attributes:
        title: what is shown.
        says: how to read it, in a sentence.
        frame: with its axes.
        curves: the chunks in their order, those without any value left out.
        stacked: whether the curves are bands.
        data: for the script: names, x (loss tokens), px (x in the figure) and values, a list a
            name.
    """

    title: str
    says: str
    frame: Frame
    curves: list[Curve]
    stacked: bool
    data: dict[str, Any]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers whose range holds low and high."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / count))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def short(value: float) -> str:
    """Returns a number as it stands at an axis: 1.5M, 200k, 0.25."""
    for size, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{name}"
    return f"{value:g}"


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Returns the map from [first, last] of some values to [start, end]."""
    low, high = values[0], values[-1]
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def _label(text: str, placed: Placed) -> Label:
    box, leader = placed.box, placed.leader
    ends = {"start": box.left, "middle": (box.left + box.right) / 2, "end": box.right}
    if leader is not None:
        x1, y1, x2, y2 = (round(v, 1) for v in leader)
        leader = (x1, y1, x2, y2)
    at = round(ends[placed.anchor], 1), round(box.bottom - BASELINE, 1)
    return Label(*at, placed.anchor, text, leader)


def scatter(
    rows: Sequence[dict[str, Any]],
    width: float,
    height: float,
    strong: Sequence[str] = (),
    said: Callable[[dict[str, Any]], str] = lambda row: str(row["name"]),
) -> Scatter:
    """Returns accuracy (%) against tokens written an answer, each row of the table a named point.

    Args:
        rows: as in report.json.
        width: of the figure.
        height: of the figure, at least; it grows until all names find room.
        strong: the names that the headline speaks of.
        said: what a reader is told who points at a row.
    """
    spans = [(100 * v for v in row["accuracy_interval"]) for row in rows]
    lows, highs = zip(*spans, strict=True)
    y_values = [v for v in ticks(min(lows), max(highs)) if 0 <= v <= 100]
    x_values = ticks(0.0, max(row["generated_tokens"] for row in rows), 4 if width < 500 else 7)
    names = [shorten(str(row["name"]), width - 90) for row in rows]
    widths = [text_width(n, row["name"] in strong) + 2 for n, row in zip(names, rows, strict=True)]
    while True:
        area = Box(44, 34, width - 18, height - 46)
        x = _scale(x_values, area.left, area.right)
        y = _scale(y_values, area.bottom, area.top)
        at = [(x(row["generated_tokens"]), y(100 * row["accuracy"])) for row in rows]
        bars = [
            Box(px - 1, y(high), px + 1, y(low))
            for (px, _), low, high in zip(at, lows, highs, strict=True)
        ]
        room = Box(area.left + 2, area.top - 6, width - 2, area.bottom)
        placed = place_labels(at, widths, room, RADIUS, bars)
        if placed is not None:
            break
        height += 60
    points = [
        Point(px, py, bar.bottom, bar.top, _label(name, p), said(row), row["name"] in strong)
        for (px, py), bar, name, p, row in zip(at, bars, names, placed, rows, strict=True)
    ]
    points.sort(key=lambda point: point.strong)  # what is drawn last lies on top
    frame = Frame(
        width,
        height,
        area,
        [Tick(x(v), short(v)) for v in x_values],
        [Tick(y(v), f"{v:g}") for v in y_values],
        "tokens written for an answer",
        "accuracy, %",
    )
    return Scatter(frame, points)


def training_curves(log: Sequence[dict[str, Any]]) -> list[Curves]:
    """Returns loss, share of the gradient and over-smoothing of each chunk over training.

    Args:
        log: lines of train_log.jsonl; each point of a curve is the mean of a stretch of steps.
    """
    if not log:
        return []
    size = max(1, math.ceil(len(log) / POINTS))
    stretches = [log[i : i + size] for i in range(0, len(log), size)]
    x = [part[-1]["loss_tokens"] for part in stretches]
    chunks = len(log[0]["chunk_tokens"])
    total = [sum(sum(row["chunk_grad_norm"]) for row in part) for part in stretches]
    loss, share, smooth = [], [], []
    for m in range(chunks):
        tokens, nll, norm = (
            [sum(row[key][m] for row in part) for part in stretches]
            for key in ("chunk_tokens", "chunk_nll", "chunk_grad_norm")
        )
        ratios = [
            [r for row in part if (r := _smoothing(row, m)) is not None] for part in stretches
        ]
        loss.append(_divided(nll, tokens))
        share.append(_divided([100 * v for v in norm], total))
        smooth.append([sum(r) / len(r) if r else None for r in ratios])
    return [
        _curves("Loss by chunk", "Nats a token.", x, loss),
        _curves(
            "Share of the gradient by chunk",
            "Per cent of the summed gradient norms of all tokens.",
            x,
            share,
            stacked=True,
        ),
        _curves(
            "Over-smoothing by chunk",
            "Length of the mean gradient over the mean length: at 1 all tokens of the chunk pull "
            "the same way, at 0 they cancel.",
            x,
            smooth,
        ),
    ]


def _smoothing(row: dict[str, Any], m: int) -> float | None:
    """Returns the over-smoothing ratio of a chunk where the step measured it.

    It is of the logits' gradients or, where a step holds no logits, of the hidden states'.
    """
    if ratios := row.get("chunk_hidden_smoothing"):
        return float(ratios[m]) if row["chunk_tokens"][m] else None
    means = row.get("chunk_mean_grad_norm")
    if not means or not row["chunk_grad_norm"][m]:
        return None
    return float(means[m] * row["chunk_tokens"][m] / row["chunk_grad_norm"][m])


Values = list[float | None]


def _divided(above: Sequence[float], below: Sequence[float]) -> Values:
    ratios = (a / b if b else math.nan for a, b in zip(above, below, strict=True))
    return [r if math.isfinite(r) else None for r in ratios]


def _curves(
    title: str, says: str, x: Sequence[float], values: Sequence[Values], stacked: bool = False
) -> Curves:
    """Returns one figure: a line or a band a chunk, each named at its right end."""
    chunks = len(values)
    names = ["answer" if m == chunks - 1 else f"chunk {m}" for m in range(chunks)]
    width, height = 370.0, max(270.0, 70 + LINE * chunks)
    area = Box(44, 12, width - 26 - max(map(text_width, names)), height - 46)
    known = [v for line in values for v in line if v is not None]
    x_values = [v for v in ticks(0, max(x), 4) if v <= max(x)]
    y_values = ticks(0, 100 if stacked else max(known, default=1.0))
    to_x = _scale((0, max(x)), area.left, area.right)
    to_y = _scale(y_values, area.bottom, area.top)
    px = [to_x(v) for v in x]
    drawn = (_bands if stacked else _lines)(px, values, to_y)
    frame = Frame(
        width,
        height,
        area,
        [Tick(to_x(v), short(v)) for v in x_values],
        [Tick(to_y(v), short(v)) for v in y_values],
        "loss tokens so far",
        "",
    )
    rounded = [[v if v is None else float(f"{v:.3g}") for v in line] for line in values]
    data = {"names": names, "x": x, "px": px, "values": rounded}
    return Curves(title, says, frame, _named(drawn, names, area), stacked, data)


Drawn = dict[int, tuple[str, float, float]]  # chunk: path, x and y of its right end


def _named(drawn: Drawn, names: Sequence[str], area: Box) -> list[Curve]:
    """Returns the curves with their names, side by side at the right of the figure."""
    # `spread` keeps ties in the order given: the last chunk of a stack is the highest.
    order = sorted(drawn, reverse=True)
    heights = spread([drawn[m][2] for m in order], LINE, area.top, area.bottom)
    at = dict(zip(order, heights, strict=True))
    curves = []
    for m, (path, x, y) in sorted(drawn.items()):
        answer = m == len(names) - 1
        hue = None if answer else round(265 - 225 * m / max(1, len(names) - 2), 1)
        leader = (round(x, 1), round(y, 1), area.right + 14, round(at[m], 1))
        label = Label(
            area.right + 18, round(at[m] + LINE / 2 - BASELINE, 1), "start", names[m], leader
        )
        curves.append(Curve(path, hue, label))
    return curves


def _lines(px: Sequence[float], values: Sequence[Values], to_y: Callable[[float], float]) -> Drawn:
    found: Drawn = {}
    for m, line in enumerate(values):
        at = [(x, to_y(v)) for x, v in zip(px, line, strict=True) if v is not None]
        if at:
            path = "M" + "L".join(f"{x},{y}" for x, y in at)
            found[m] = (path if len(at) > 1 else f"{path}h.1", *at[-1])
    return found


def _bands(px: Sequence[float], values: Sequence[Values], to_y: Callable[[float], float]) -> Drawn:
    found: Drawn = {}
    below = [0.0] * len(px)
    for m, line in enumerate(values):
        above = [b + (v or 0.0) for b, v in zip(below, line, strict=True)]
        if any(v is not None for v in line):
            upper = [f"{x},{to_y(v)}" for x, v in zip(px, above, strict=True)]
            lower = [f"{x},{to_y(v)}" for x, v in zip(px, below, strict=True)]
            path = "M" + "L".join([*upper, *reversed(lower)]) + "Z"
            found[m] = (path, px[-1], to_y((above[-1] + below[-1]) / 2))
        below = above
    return found
