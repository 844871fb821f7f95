"""Drift over a drive as inline SVG: errors per frame on a logarithmic scale, matched detections, resets.

The colours and texts are the report's style sheet's; nothing here needs a plotting library.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axes, svg, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

STRIP = 34
"""Height of the strip of matched detections, pixels."""
DECADES = (-8, 2)
"""The widest range that is drawn, as powers of ten; errors of 0 are drawn at the lower end of the axis."""
LINES = 8
"""Line styles of the style sheet: classes `line0` to `line7`; a ninth tensor has the first again."""


def drift_plot(series: Mapping[str, Any], names: Sequence[str], label: str) -> Markup:
    """Draw errors per frame of some tensors, each divided by its tolerance, with a line at 1.

    Args:
        series: `SequenceRow.series`, with lists of an entry per frame: `name`, `reset` (whether the memory
            was empty before), and `ratios`, tensor -> list of its error over its tolerance, None in a frame
            in which it was not compared or has none; it may end before the last frame.
        names: names of the tensors.
        label: what the chart shows, for screen readers.
    """
    values = [series['ratios'].get(name, []) for name in names]
    decades = [math.log10(value) for line in values for value in line if value]
    low, high = math.floor(min(decades, default=-4)), math.ceil(max(decades, default=0))
    if any(value == 0 for line in values for value in line):  # drawn a decade below the others
        low -= 1
    low, high = max(low, DECADES[0]), min(max(high, 0), DECADES[1])
    axes = Axes(len(series['name']), min(low, high - 2), high)
    curves = (_curve(line, axes, index) for index, line in enumerate(values))
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if axes.frames <= 12 * step)
    numbers = [text(axes.x(frame), HEIGHT - 8, str(frame)) for frame in range(0, axes.frames, step)]
    resets = _resets(series['reset'], axes, HEIGHT - BOTTOM)
    grid = axes.grid(lambda decade: ('base', f'1e{decade}') if decade else ('bar-line', 'tolerance'))
    return svg([*grid, *resets, *curves, *numbers], label, kind='drift')


def match_strip(series: Mapping[str, Any], label: str) -> Markup:
    """Draw per frame which share of the detections was matched: full height is all of them.

    A share below 0.06 is drawn as high as 0.06, and a frame without results as a pale bar of full height. The
    arguments are those of `drift_plot`, and `match_shares` for further keys of `series`.
    """
    axes = Axes(len(series['name']), *DECADES)
    wide = (WIDTH - LEFT - RIGHT) / max(axes.frames, 1)
    parts = [text(LEFT - 6, STRIP - 8, 'matched', 'end')]
    for index, share in enumerate(match_shares(series)):
        kind, part = 'none', 1.0
        if share is not None:
            kind, part = 'over' if share < 1 else 'bar', max(share, 0.06)
        tall = round((STRIP - 8) * part, 2)
        x = round(axes.x(index) - wide * 0.45, 2)
        parts.append(
            f'<rect class="{kind}" x="{x}" y="{STRIP - 4 - tall}" width="{wide * 0.9:.2f}" height="{tall}"/>'
        )
    parts += _resets(series['reset'], axes, STRIP - 4)
    return svg(parts, label, STRIP, 'drift')


def match_shares(series: Mapping[str, Any]) -> list[float | None]:
    """Return per frame `matched` over the larger of `reference` and `matched` + `extra`.

    It is None if `reference` and `extra` are 0.

    `series` has the numbers of each frame: `reference` (PyTorch's results), `matched`, `extra` (results of
    the engine without a partner). Only results that are not below the score threshold are in them.
    """
    counts = zip(series['reference'], series['matched'], series['extra'], strict=True)
    return [
        matched / max(reference, matched + extra) if reference or extra else None
        for reference, matched, extra in counts
    ]


def _resets(resets: Sequence[bool], axes: Axes, bottom: float) -> list[str]:
    """Return vertical lines before the frames, but the first, that began with an empty memory."""
    lines = [axes.x(index - 0.5) for index, reset in enumerate(resets) if reset and index]
    return [f'<line class="reset" x1="{x}" x2="{x}" y1="4" y2="{bottom}"/>' for x in lines]


def _curve(line: Sequence[float | None], axes: Axes, index: int) -> str:
    """Return one tensor's line; frames without a comparison are gaps with a mark on top."""
    path, missing, pen = [], [], 'M'
    for frame, value in enumerate(line):
        if value is None:
            missing.append(frame)
            pen = 'M'
        else:
            dot = 'h0' if pen == 'M' else ''  # a line of no length, so that a single point is seen
            path.append(f'{pen}{axes.x(frame)} {axes.y(value)}{dot}')
            pen = 'L'
    marks = ''.join(f'<circle class="lost" cx="{axes.x(frame)}" cy="{TOP}" r="3"/>' for frame in missing)
    return f'<path class="line{index % LINES}" d="{" ".join(path)}"/>{marks}'
