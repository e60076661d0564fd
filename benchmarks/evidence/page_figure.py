"""The figure of the evidence pages: accuracy against tokens, a panel a task, as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, COLUMNS = 236, 190, 4  # of a panel, in pixels; panels in a row
LEFT, RIGHT, TOP, BOTTOM = 34, 10, 24, 30  # margins inside a panel
LEGEND_LINE = 17
COLOURS = {  # of families
    "plain": "#3b6fb6",
    "chunk": "#7b4fa3",
    "control": "#6b6b6b",
    "skip": "#1d8a4d",
    "rival": "#c8641b",
    "oracle": "#b0234a",
}
FAMILIES = {
    "answer-only": "plain", "FTT": "plain", "FTT-small-batch": "plain", "FTT-long": "plain",
    "FTT-sentence-dropout": "plain", "CWT": "chunk", "CWT-one-pass": "chunk",
    "continued": "control", "random-skips": "control", "STT": "skip", "STT-at-once": "skip",
    "oracle-skips": "oracle",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A row of the table in a panel: tokens a question, accuracy in percent."""

    name: str
    tokens: float
    accuracy: float


def figure(panels: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Returns the SVG of some panels, each with its title; rows have the same number in all.

    Args:
        panels: title and points of each.
    """
    names = list(dict.fromkeys(p.name for _, points in panels for p in points))
    order = [*FAMILIES, *sorted(set(names) - set(FAMILIES))]
    names.sort(key=order.index)
    rows = -(-len(panels) // COLUMNS)
    lines = -(-len(names) // COLUMNS)
    width, height = COLUMNS * WIDTH, rows * HEIGHT + lines * LEGEND_LINE + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="11">',
        "<title>Accuracy against tokens written, a panel a task</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for i, (title, points) in enumerate(panels):
        x, y = i % COLUMNS * WIDTH, i // COLUMNS * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(title, points, names), "</g>"]
    for i, name in enumerate(names):
        x = i % COLUMNS * WIDTH + 16
        y = rows * HEIGHT + i // COLUMNS * LEGEND_LINE + 10
        parts += [_mark(x, y, i + 1, name), _text(x + 13, y + 4, name, "start")]
    return "\n".join([*parts, "</svg>", ""])


def _panel(title: str, points: Sequence[Point], names: Sequence[str]) -> list[str]:
    most = max([p.tokens for p in points], default=1.0)
    step = next(s for s in (10, 20, 25, 50, 100, 200, 500, 1000) if most / s <= 5)
    end = step * (int(most / step) + 1)
    top = next(t for t in (20, 40, 60, 100) if t >= max([p.accuracy for p in points], default=0))
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_of(tokens: float) -> float:
        return LEFT + tokens / end * inner_width

    def y_of(accuracy: float) -> float:
        return TOP + (1 - accuracy / top) * inner_height

    parts = [f'<text x="{LEFT}" y="15" font-weight="bold">{escape(title)}</text>']
    for accuracy in range(0, top + 1, top // 4):
        y = y_of(accuracy)
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(LEFT - 5, y + 4, str(accuracy), "end"))
    for tokens in range(0, end + 1, step):
        parts.append(_text(x_of(tokens), HEIGHT - BOTTOM + 14, str(tokens), "middle"))
    for p in sorted(points, key=lambda p: -names.index(p.name)):
        parts.append(_mark(x_of(p.tokens), y_of(p.accuracy), names.index(p.name) + 1, p.name))
    return parts


def _mark(x: float, y: float, number: int, name: str) -> str:
    colour = COLOURS[FAMILIES.get(name, "rival")]
    return (
        f'<g><title>{escape(name)}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="7" '
        f'fill="{colour}" fill-opacity="0.85" stroke="#ffffff"/><text x="{x:.1f}" '
        f'y="{y + 3:.1f}" font-size="8" text-anchor="middle" fill="#ffffff">{number}</text></g>'
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
