"""The verdict as one self-contained HTML page, whose figures are those of the JSON that is embedded in it."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mmdeploy_ext.core.files import atomic_path, write_json
from mmdeploy_ext.core.pages import embedded_json, template
from mmdeploy_ext.proving.tasks import task_module
from mmdeploy_ext.proving.tasks.bev import draw_bev
from mmdeploy_ext.proving.tensors import HISTOGRAM_DECADES
from mmdeploy_ext.proving.views.commands import next_command
from mmdeploy_ext.proving.views.drift_plot import drift_plot, match_strip
from mmdeploy_ext.proving.views.table import cosine_text, figure
from mmdeploy_ext.runtime.draw import encode_jpeg, encode_png

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.proving.results import Pair
    from mmdeploy_ext.proving.verdict import Verdict

TEMPLATE = 'report.html.j2'
OPEN_ROWS = 40
"""With more tensor rows than this, only failed cases and the first one are unfolded at first."""
SHOWN_SCORE, FAINT_SCORE = 0.3, 0.1
"""Results are drawn from the first score on; if none has it (weights from a seed), from the second."""
FORMATS: dict[str, Callable[[Any], str]] = {
    'int': lambda value: f'{value:,}'.replace(',', '\u202f'),
    'error': figure,
    'cosine': cosine_text,
    'iou': lambda value: '-' if value is None else f'{value:.6f}',
    'metric': lambda value: '-' if value is None else f'{value:.4f}',
    'metres': lambda value: '-' if value is None else f'{value:.2e} m',
    'percent': lambda value: '-' if value is None else f'{math.floor(1e4 * value + 1e-6) / 100:.2f} %',
    'ms': lambda value: '-' if value is None else f'{value:.1f}',
}
"""`data-format` of an element of the page -> function from its value in the JSON to its text."""


def write_report(verdict: Verdict, pictures: Sequence[Pair], classes: Sequence[str], folder: Path) -> Path:
    """Write `report.html` and `verdict.json` of a proof; return the path of the page.

    Args:
        verdict: verdict of the proof.
        pictures: images, frames or sweeps with both engines' results, or both engines' feature maps.
        classes: names by label.
        folder: made when it is missing; other files in it stay.

    Raises:
        Mm2OnnxError: a file cannot be written.
    """
    folder = Path(folder)
    page = render(verdict, pictures, classes)
    write_json(folder / 'verdict.json', verdict.to_json())
    with atomic_path(folder / 'report.html') as temporary:
        temporary.write_text(page, encoding='utf-8')
    return folder / 'report.html'


def render(verdict: Verdict, pictures: Sequence[Pair], classes: Sequence[str]) -> str:
    """Return the HTML page of a proof; `verdict`, `pictures` and `classes` are those of `write_report`."""
    content, task = verdict.to_json(), verdict.subject.get('task', 'bbox2d')

    def number(path: str, format_name: str) -> Markup:
        text = FORMATS[format_name](look_up(content, path))
        return Markup('<span data-path="{}" data-format="{}">{}</span>').format(path, format_name, text)

    gives = f'half precision ({verdict.precision}) can give of the PyTorch model'
    return template(__file__, TEMPLATE, autoescape=True).render(
        number=number,
        bars=histogram_bars,
        ticks=decade_ticks(),
        verdict=content,
        proven=verdict.passed,
        title=verdict.title,
        claim=f'gives what {"the PyTorch model gives" if verdict.proven else gives}',
        reasons=verdict.failures,
        next_command=next_command(verdict),
        pictures=[(pair.title, picture_uri(pair, classes, task)) for pair in pictures],
        brief=sum(len(case.tensors) for case in verdict.cases) > OPEN_ROWS,
        engine=pictures[0].engine if pictures else '',
        subject=subject_rows(content['subject']),
        embedded=embedded_json(content),
        plots=[sequence_plots(row) for row in content['sequence']],
        bev=task == 'bev',
        half=verdict.subject.get('form') == 'libspconv',
    )


def sequence_plots(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the charts of a drive.

    Args:
        row: a `SequenceRow` as JSON.

    Returns:
        `drifts`: (title, names of tensors, SVG) of outputs and of the memory; `strip`: SVG of the matched
        detections, or ''.
    """
    names = list(row['series'].get('ratios', {}))
    memory = [name for name in names if name.startswith('memory ')]
    outputs = [name for name in names if name not in memory]
    drifts = [
        (title, group, drift_plot(row['series'], group, f'{title}: error over tolerance, {row["title"]}'))
        for title, group in (('Outputs', outputs), ('Memory', memory))
        if group
    ]
    strip = match_strip(row['series'], f'Matched detections per frame, {row["title"]}') if names else ''
    return dict(drifts=drifts, strip=strip)


def look_up(content: Any, path: str) -> Any:
    """Return the value at a path like 'cases/0/tensors/3/max_abs'."""
    for step in path.split('/'):
        content = content[int(step)] if isinstance(content, list) else content[step]
    return content


def picture_uri(pair: Pair, classes: Sequence[str], task: str = 'bbox2d') -> str:
    """Return the drawing of a pair as a `data:` address; `task` is that of the results, 'bev' of maps.

    `classes` are names by label, which maps do not need.
    """
    if task == 'bev':
        return 'data:image/png;base64,' + base64.b64encode(encode_png(draw_bev(pair))).decode()
    drawing = task_module(task)
    surest = max((float(side.scores.max(initial=0)) for side in (pair.reference, pair.candidate)), default=0)
    options = {} if surest >= SHOWN_SCORE else dict(score_thr=FAINT_SCORE)
    jpeg = encode_jpeg(drawing.draw_pair(drawing.fit_pair(pair), classes, **options))
    return 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode()


def histogram_bars(histogram: Sequence[int], width: float, height: float) -> list[dict[str, Any]]:
    """Return the bars of an error histogram, one per power of ten, with logarithmic heights.

    Args:
        histogram: counts, see `TensorRow.histogram`.
        width: width of the chart, pixels.
        height: height of the chart, pixels.

    Returns:
        Per bar `x`, `y` (of its upper left corner), `width` and `height` in pixels, `count`, and `decade`,
        its exponent of ten.
    """
    step, largest = width / max(len(histogram), 1), math.log10(max([*histogram, 1]) + 1)
    heights = [height * math.log10(count + 1) / largest for count in histogram]
    return [
        dict(
            x=round(index * step + step * 0.08, 2),
            y=round(height - tall, 2),
            width=round(step * 0.84, 2),
            height=round(tall, 2),
            count=count,
            decade=HISTOGRAM_DECADES[0] + index,
        )
        for index, (count, tall) in enumerate(zip(histogram, heights, strict=True))
    ]


def decade_ticks() -> list[str]:
    """Return the axis labels of a histogram, '1e-12' to '1'."""
    low, high = HISTOGRAM_DECADES
    return ['1' if decade == 0 else f'1e{decade}' for decade in range(low, high + 1)]


def subject_rows(subject: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, text) of each entry of the subject; inner dicts become 'a 1, b 2'.

    In the names spaces stand for underscores.
    """

    def words(value: Any) -> str:
        inner = value.items() if isinstance(value, dict) else None
        return str(value) if inner is None else ', '.join(f'{key} {entry}' for key, entry in inner)

    return [(name.replace('_', ' '), words(value)) for name, value in subject.items()]
