"""Axes of charts of errors in SVG: frames (or other entries) from left to right, powers of ten upwards."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 780, 230
"""Size of a chart with its margins, in pixels of its own, which a page scales."""
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 26
"""Margins around the axes, in the same pixels."""


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes of a chart.

    Attributes:
        frames: number of frames on the horizontal axis.
        low: exponent of ten at the lower end of the vertical axis.
        high: exponent of ten at its upper end, larger than `low`.
    """

    frames: int
    low: int
    high: int

    def x(self, frame: float) -> float:
        """Return the horizontal pixel of the middle of a frame, by its index; 0.5 less is its left end."""
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (frame + 0.5) / max(self.frames, 1), 2)

    def y(self, value: float) -> float:
        """Return the vertical pixel of an error, which is not NaN; one beyond the axis lies on its end."""
        decade = math.log10(value) if value > 0 else self.low
        part = (min(max(decade, self.low), self.high) - self.low) / (self.high - self.low)
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - part), 2)

    def line(self, value: float, kind: str) -> str:
        """Return an SVG line across the chart at an error; `kind` is its class in the style sheet."""
        y = self.y(value)
        return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'

    def grid(self, name: Callable[[int], tuple[str, str]]) -> Iterator[str]:
        """Yield SVG elements: for each power of ten a line across the chart, and its label.

        `name(exponent)` returns the class of the line in the style sheet, and the label as markup.
        """
        for decade in range(self.low, self.high + 1):
            kind, words = name(decade)
            yield self.line(10.0**decade, kind)
            yield text(LEFT - 6, self.y(10.0**decade) + 4, words, 'end')


def text(x: float, y: float, words: str, anchor: str = 'middle') -> str:
    """Return an SVG element: the text `words` at a pixel of a chart; `anchor` is its `text-anchor`.

    `words` are markup: characters such as `<` have to be escaped.
    """
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'


def svg(parts: Sequence[str], label: str, height: int = HEIGHT, kind: str = '') -> Markup:
    """Return a chart as an SVG element of an HTML page, as wide as its place there.

    Args:
        parts: SVG elements in it, as markup.
        label: plain text of what it shows, for screen readers; it is escaped here.
        height: height in pixels of which the width has `WIDTH`.
        kind: its class in the style sheet.
    """
    from markupsafe import Markup

    opening = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}" width="100%">')
    return opening.format(kind, WIDTH, height, label) + Markup(''.join(parts)) + Markup('</svg>')
