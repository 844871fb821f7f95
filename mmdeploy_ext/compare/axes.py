"""Axes of charts of errors: a frame or an entry across, decades up. Pixels of an SVG."""

from __future__ import annotations

import dataclasses
import math

WIDTH, HEIGHT = 780, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 26


@dataclasses.dataclass(frozen=True)
class Axes:
    """Where values go.

    Attributes:
        frames: on the x axis.
        low: lowest decade.
        high: highest decade.
    """

    frames: int
    low: int
    high: int

    def x(self, frame: float) -> float:
        """Return the abscissa of a frame."""
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (frame + 0.5) / max(self.frames, 1), 2)

    def y(self, value: float) -> float:
        """Return the ordinate of an error; what is beyond the axis lies on its end."""
        decade = math.log10(value) if value > 0 else self.low
        part = (min(max(decade, self.low), self.high) - self.low) / (self.high - self.low)
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - part), 2)
