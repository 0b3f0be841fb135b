"""A line chart as SVG, both axes in powers of two: small enough to read, and to see what changed in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 60, 60
"""Margins, for the axes' words. All sizes are pixels."""


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: Mapping[int, float]
    color: str
    is_measured: bool = False
    """Drawn through, with its points and their values; a limit is dashed."""


def draw(title: str, *, across: str, upward: str, lines: Sequence[Line]) -> str:
    """The chart as the text of an SVG file. All values are above 0."""
    scale = _Scale(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(WIDTH / 2, 22, title, 'text-anchor="middle" font-size="15"'),
        *_axes(scale, across, upward),
        *(part for line in lines for part in _line(scale, line)),
        *(part for place, line in enumerate(lines) for part in _legend(place, line)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Scale:
    """From values to pixels."""

    def __init__(self, lines: Sequence[Line]) -> None:
        across = [x for line in lines for x in line.points]
        upward = [y for line in lines for y in line.points.values()]
        self.columns = range(math.floor(math.log2(min(across))), math.ceil(math.log2(max(across))) + 1)
        self.rows = range(math.floor(math.log2(min(upward))), math.ceil(math.log2(max(upward))) + 1)

    def x(self, value: float) -> float:
        share = (math.log2(value) - self.columns[0]) / max(1, len(self.columns) - 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (math.log2(value) - self.rows[0]) / max(1, len(self.rows) - 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _axes(scale: _Scale, across: str, upward: str) -> list[str]:
    parts = []
    for power in scale.columns:
        x = scale.x(2.0**power)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e5e7eb"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{2**power}", 'text-anchor="middle"'))
    for power in scale.rows:
        y = scale.y(2.0**power)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{2.0**power:g}", 'text-anchor="end"'))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18, across, 'text-anchor="middle"'))
    parts.append(_text(18, middle, upward, f'text-anchor="middle" transform="rotate(-90 18 {middle:.0f})"'))
    return parts


def _line(scale: _Scale, line: Line) -> list[str]:
    places = [(scale.x(x), scale.y(y), y) for x, y in sorted(line.points.items())]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    dashes = "" if line.is_measured else ' stroke-dasharray="6 4"'
    parts = [f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="2"{dashes}/>']
    if line.is_measured:
        for x, y, value in places:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{line.color}"/>')
            parts.append(_text(x, y + 18, f"{value:.0f}", f'text-anchor="middle" fill="{line.color}"'))
    return parts


def _legend(place: int, line: Line) -> list[str]:
    x = LEFT + place * (WIDTH - LEFT - RIGHT) / 3
    dashes = "" if line.is_measured else ' stroke-dasharray="6 4"'
    return [
        f'<path d="M{x:.0f} 42h22" stroke="{line.color}" stroke-width="2"{dashes}/>',
        _text(x + 28, 46, line.name, 'font-size="10"'),
    ]


def _text(x: float, y: float, words: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(words)}</text>'
