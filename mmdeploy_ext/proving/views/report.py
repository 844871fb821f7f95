"""The verdict as one self-contained HTML page with embedded JSON."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.files import atomic_path, write_json
from mmdeploy_ext.base.pages import embedded_json, template
from mmdeploy_ext.proving.views.charts import drift_plot, match_strip
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
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.spec.results import Pair
    from mmdeploy_ext.spec.verdict import Finding, Verdict

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
    surest = max((float(side.scores.max(initial=0)) for side in (pair.reference, pair.candidate)), default=0)
    options = {} if surest >= SHOWN_SCORE else dict(score_thr=FAINT_SCORE)
    jpeg = encode_jpeg(drawing.draw_pair(drawing.fit_pair(pair), classes, **options))
    return 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode()


def subject_rows(subject: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, text) of each entry; inner dicts become 'a 1, b 2'."""

    def words(value: Any) -> str:
        inner = value.items() if isinstance(value, dict) else None
        return str(value) if inner is None else ', '.join(f'{key} {entry}' for key, entry in inner)

    return [(name.replace('_', ' '), words(value)) for name, value in subject.items()]
