"""Charts as SVG text, to stand inside a page: bars beside names, and columns over time. Pure; everything is escaped.

Colours and fonts come from the page's style sheet by class. Each mark carries its figure as a title, which browsers
show under the pointer, so nothing needs a script.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

BAR_HEIGHT, BAR_GAP, NAME_WIDTH, VALUE_WIDTH, WIDTH = 16, 8, 210, 90, 760
COLUMNS_HEIGHT, AXIS_HEIGHT, AXIS_WIDTH = 160, 22, 56
NAME_CHARS_MAX = 30
COLUMNS_MAX = 180
LABELS_MAX = 8
STEP_MAX = 70
"""Width of a label's columns at most: a single day is no wall."""
_SERIES = ("source", "target")


class Bar(NamedTuple):
    """One bar: a name, its value, and how the value is written. `style` is a class of the style sheet."""

    name: str
    value: float
    text: str
    style: str = "a"


def bars(items: Sequence[Bar], title: str) -> str:
    """Return horizontal bars, the longest as wide as there is room."""
    if not items:
        return '<p class="none">nothing</p>'
    most = max(max(item.value for item in items), 1e-12)
    room = WIDTH - NAME_WIDTH - VALUE_WIDTH
    height = len(items) * (BAR_HEIGHT + BAR_GAP)
    parts = [_open(height, title)]
    for number, item in enumerate(items):
        y = number * (BAR_HEIGHT + BAR_GAP) + BAR_GAP / 2
        width = max(room * item.value / most, 1.0 if item.value else 0.0)
        middle = y + BAR_HEIGHT - 4
        parts.append(f"<g><title>{escape(item.name)}: {escape(item.text)}</title>")
        parts.append(f'<text x="{NAME_WIDTH - 8}" y="{middle:g}" class="name">{escape(_short(item.name))}</text>')
        parts.append(
            f'<rect x="{NAME_WIDTH}" y="{y:g}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2" class="{item.style}"/>'
        )
        parts.append(
            f'<text x="{NAME_WIDTH + width + 6:.1f}" y="{middle:g}" class="value">{escape(item.text)}</text></g>'
        )
    return "".join([*parts, "</svg>"])


def columns(labels: Sequence[str], source: Sequence[int], target: Sequence[int], title: str) -> str:
    """Return columns for each label under one scale, source and target (if there is one) side by side.

    Neighbours are added together when there are many.
    """
    labels, *series = _joined(labels, source, target)
    if not labels:
        return '<p class="none">nothing</p>'
    most = max(1, *(max(one) for one in series))
    room = WIDTH - AXIS_WIDTH
    step = min(room / len(labels), STEP_MAX)
    height = COLUMNS_HEIGHT + AXIS_HEIGHT
    parts = [_open(height, title)]
    for share in (0.5, 1.0):
        y = COLUMNS_HEIGHT - share * (COLUMNS_HEIGHT - 12)
        parts.append(f'<line x1="{AXIS_WIDTH}" x2="{AXIS_WIDTH + room}" y1="{y:g}" y2="{y:g}" class="grid"/>')
        parts.append(f'<text x="{AXIS_WIDTH - 6}" y="{y + 4:g}" class="name">{round(most * share):,}</text>')
    every = max(1, -(-len(labels) // LABELS_MAX))
    wide = 0.86 / len(series)
    for number, label in enumerate(labels):
        x = AXIS_WIDTH + number * step
        figures = ", ".join(f"{name} {one[number]:,}" for name, one in zip(_SERIES, series, strict=False))
        parts.append(f"<g><title>{escape(label)}: {figures}</title>")
        for place, one in enumerate(series):
            tall = one[number] / most * (COLUMNS_HEIGHT - 12)
            parts.append(
                f'<rect x="{x + (0.05 + place * wide) * step:.2f}" y="{COLUMNS_HEIGHT - tall:.1f}" '
                f'width="{max(step * wide * 0.95, 0.5):.2f}" height="{tall:.1f}" class="{"ab"[place]}"/>'
            )
        parts.append("</g>")
        if number % every == 0 and x < WIDTH - 60:
            parts.append(f'<text x="{x:.1f}" y="{height - 5}" class="label">{escape(label)}</text>')
    return "".join([*parts, "</svg>"])


def _joined(labels: Sequence[str], *series: Sequence[int]) -> tuple[Sequence[str], *tuple[Sequence[int], ...]]:
    size = -(-len(labels) // COLUMNS_MAX) or 1
    starts = range(0, len(labels), size)
    sums = [[sum(one[at : at + size]) for at in starts] for one in series if one]
    return ([labels[at] for at in starts], *sums)


def _open(height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    )


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARS_MAX else f"{name[: NAME_CHARS_MAX - 1]}…"
