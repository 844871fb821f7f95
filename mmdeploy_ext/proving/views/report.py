"""The verdict as one self-contained HTML page with embedded JSON."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.files import atomic_path, write_json
from mmdeploy_ext.base.pages import embedded_json, template
from mmdeploy_ext.proving.views.table import (
    cosine_text,
    figure,
    last_line,
    level_lines,
    next_command,
    short,
    told_below,
)
from mmdeploy_ext.runtime.draw import encode_jpeg, encode_png
from mmdeploy_ext.runtime.tasks import task_module
from mmdeploy_ext.runtime.tasks.bev import draw_bev

if TYPE_CHECKING:
    from markupsafe import Markup

    from mmdeploy_ext.spec.results import Pair
    from mmdeploy_ext.spec.verdict import Finding, Verdict


# Charts of errors as inline SVG: powers of ten upwards, frames or other entries from left to right.


WIDTH, HEIGHT = 780, 230
"""Size of a chart with margins, in SVG pixels."""
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 26
"""Margins around the axes, in the same pixels."""
STRIP = 34
"""Height of the strip of matched detections, pixels."""
DECADES = (-8, 2)
"""Widest drawn range, as powers of ten; 0 lies at the lower end."""
LINES = 8
"""Line styles of the style sheet, `line0` to `line7`, in turn."""


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes of a chart: number of frames, and exponents of ten at the lower and the upper end."""

    frames: int
    low: int
    high: int

    def x(self, frame: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (frame + 0.5) / max(self.frames, 1), 2)

    def y(self, value: float) -> float:
        decade = math.log10(value) if value > 0 else self.low
        part = (min(max(decade, self.low), self.high) - self.low) / (self.high - self.low)
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - part), 2)

    def line(self, value: float, kind: str) -> str:
        y = self.y(value)
        return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'

    def grid(self, name: Callable[[int], tuple[str, str]]) -> Iterator[str]:
        for decade in range(self.low, self.high + 1):
            kind, words = name(decade)
            yield self.line(10.0**decade, kind)
            yield text(LEFT - 6, self.y(10.0**decade) + 4, words, 'end')


def text(x: float, y: float, words: str, anchor: str = 'middle') -> str:
    """Return an SVG text ; `words` are markup."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'


def svg(parts: Sequence[str], label: str, height: int = HEIGHT, kind: str = '') -> Markup:
    from markupsafe import Markup

    opening = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}" width="100%">')
    return opening.format(kind, WIDTH, height, label) + Markup(''.join(parts)) + Markup('</svg>')


def drift_plot(series: Mapping[str, Any], names: Sequence[str], label: str) -> Markup:
    """Draw errors per frame over their tolerance, with a line at 1."""
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
    counts = zip(series['reference'], series['matched'], series['extra'], strict=True)
    return [
        matched / max(reference, matched + extra) if reference or extra else None
        for reference, matched, extra in counts
    ]


def _resets(resets: Sequence[bool], axes: Axes, bottom: float) -> list[str]:
    lines = [axes.x(index - 0.5) for index, reset in enumerate(resets) if reset and index]
    return [f'<line class="reset" x1="{x}" x2="{x}" y1="4" y2="{bottom}"/>' for x in lines]


def _curve(line: Sequence[float | None], axes: Axes, index: int) -> str:
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


TEMPLATE = 'report.html.j2'
SHOWN_SCORE, FAINT_SCORE = 0.3, 0.1
"""Least drawn score; the second applies if no result has the first."""


def write_report(verdict: Verdict, classes: Sequence[str], folder: Path) -> Path:
    folder = Path(folder)
    write_json(folder / 'verdict.json', verdict.to_json())
    (folder / 'report.html').unlink(missing_ok=True)  # of an older verdict
    page = render(verdict, classes)
    with atomic_path(folder / 'report.html') as temporary:
        temporary.write_text(page, encoding='utf-8')
    return folder / 'report.html'


def render(verdict: Verdict, classes: Sequence[str]) -> str:
    task = verdict.subject.get('task', 'bbox2d')
    return template(__file__, TEMPLATE, autoescape=True).render(
        verdict=verdict,
        summary=verdict.summary(),
        claim=last_line(verdict),
        levels=list(level_lines(verdict)),
        reasons=told_below(verdict),
        next_command=next_command(verdict),
        drives=[dict(title=title, **sequence_plots(title, rows)) for title, rows in verdict.series.items()],
        inputs=inputs_of(verdict),
        short=short,
        figure=figure,
        cosine=cosine_text,
        pictures=[(pair.title, picture_uri(pair, classes, task)) for pair in verdict.pairs],
        engine=verdict.pairs[0].engine if verdict.pairs else '',
        subject=subject_rows(verdict.subject),
        embedded=embedded_json(verdict.to_json()),
        is_bev=task == 'bev',
    )


def inputs_of(verdict: Verdict) -> list[dict[str, Any]]:
    """Return the inputs in order, each with `title`, `traced`, `passed`, `tensors` and `results`."""
    inputs: dict[int, list[Finding]] = {}
    for finding in verdict.with_figure('case'):
        inputs.setdefault(finding.figures['case'], []).append(finding)
    return [
        dict(
            title=f'{found[0].figures["input"]} {found[0].figures["input_shape"]}'.strip(),
            traced=found[0].figures['traced'],
            passed=all(finding.passed for finding in found),
            tensors=[finding for finding in found if 'tensor' in finding.figures],
            results=[finding for finding in found if 'matched' in finding.figures],
        )
        for found in inputs.values()
    ]


def sequence_plots(title: str, series: Mapping[str, Any]) -> dict[str, Any]:
    names = list(series.get('ratios', {}))
    memory = [name for name in names if name.startswith('memory ')]
    outputs = [name for name in names if name not in memory]
    drifts = [
        (kind, group, drift_plot(series, group, f'{kind}: error over tolerance, {title}'))
        for kind, group in (('Outputs', outputs), ('Memory', memory))
        if group
    ]
    strip = match_strip(series, f'Matched detections per frame, {title}') if names else ''
    return dict(drifts=drifts, strip=strip)


def picture_uri(pair: Pair, classes: Sequence[str], task: str = 'bbox2d') -> str:
    if task == 'bev':
        return 'data:image/png;base64,' + base64.b64encode(encode_png(draw_bev(pair))).decode()
    drawing = task_module(task)
    scores = [getattr(side, 'scores', None) for side in (pair.reference, pair.candidate)]  # voxels have none
    is_faint = all(side is not None and side.max(initial=0) < SHOWN_SCORE for side in scores)
    options = dict(score_thr=FAINT_SCORE) if is_faint else {}
    jpeg = encode_jpeg(drawing.draw_pair(drawing.fit_pair(pair), classes, **options))
    return 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode()


def subject_rows(subject: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, text) of each entry; inner dicts become 'a 1, b 2'."""

    def words(value: Any) -> str:
        inner = value.items() if isinstance(value, dict) else None
        return str(value) if inner is None else ', '.join(f'{key} {entry}' for key, entry in inner)

    return [(name.replace('_', ' '), words(value)) for name, value in subject.items()]
