"""The READMEs' table of detectors: how many of each family are proven, and the largest error of their proofs.

Its figures are those of the zoo's records and, for models outside the zoo, those of the tables in
docs/parity.md. `python -m docs._pages.zoo.page` writes it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.core.pages import template
from mmdeploy_ext.zoo.records import count_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mmdeploy_ext.zoo.records import Record

PARITY = Path(__file__).resolve().parents[2] / 'parity.md'
BEGIN, END = '<!-- zoo -->', '<!-- end of the zoo -->'
TEMPLATES = {'README.md': 'readme.j2'}
"""README -> template of what stands between its marks."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the proofs of some models measured; an error is None if no proof of them measured it.

    Attributes:
        proven: number of models that are proven.
        looked_at: number of models.
        score: largest difference of the two scores of a matched pair.
        iou: smallest IoU of a matched pair, of boxes or masks in a picture.
        distance_mm: largest distance of the centres of a matched pair of boxes in 3D.
        tensor: largest error of an output tensor, as a share of the tensor's largest value.
    """

    proven: int
    looked_at: int
    score: float | None = None
    iou: float | None = None
    distance_mm: float | None = None
    tensor: float | None = None

    def errors(self, score: str, tensor: str) -> str:
        """Return the errors of detections for a cell, or that of tensors if no detections were compared.

        Args:
            score: the word for a difference of scores.
            tensor: the word for an error of a tensor.
        """
        words = []
        if self.score is not None:
            words.append(f'{score} {_power(self.score)}')
        if self.iou is not None:
            words.append(f'IoU {math.floor(self.iou * 1e4) / 1e4:.4f}')
        if self.distance_mm is not None:
            words.append(f'{self.distance_mm:.2g} mm')
        if not words and self.tensor is not None:
            words.append(f'{tensor} {_power(self.tensor)}')
        return ', '.join(words)


def _power(value: float) -> str:
    return f'{value:.1e}'.replace('e-0', 'e-') if value else '0'


def of_records(records: Sequence[Record]) -> Evidence:
    """Return the evidence of configs of the zoo; proofs against a kernel of this project do not count."""
    counts = count_records(records)
    proofs = [
        outcome
        for record in records
        if not record.own_kernels
        for outcome in (record.fixed, record.dynamic)
        if outcome is not None and outcome.proven
    ]
    distance_m = _worst(max, (proof.worst_distance for proof in proofs))
    return Evidence(
        proven=counts.fixed,
        looked_at=counts.configs,
        score=_worst(max, (proof.worst_score for proof in proofs)),
        iou=_worst(min, (proof.worst_iou for proof in proofs)),
        distance_mm=None if distance_m is None else 1e3 * distance_m,
        tensor=_worst(max, (proof.worst_rel for proof in proofs)),
    )


def of_page(text: str, detector: str) -> Evidence:
    """Return the evidence of the models that docs/parity.md has of a detector.

    Args:
        text: the page.
        detector: the first cell of the models' rows, without its link.

    Raises:
        ValueError: the page has no row of this detector.
    """
    models = [row for row in table_rows(text) if row.get('detector') == detector]
    if not models:
        raise ValueError(f'docs/parity.md: no row of {detector!r}, which the READMEs name')
    # tables of the trained demo models have no column for the verdict: all of them are proven
    proven = [row for row in models if row.get('verdict', 'PROVEN') == 'PROVEN']
    return Evidence(
        proven=len(proven),
        looked_at=len(models),
        score=_worst(max, _figures(proven, 'worst score difference')),
        iou=_worst(min, _figures(proven, 'worst IoU')),
        distance_mm=_worst(max, _figures(proven, 'worst distance')),
        tensor=_worst(max, _figures(proven, 'worst tensor error')),
    )


def table_rows(text: str) -> list[dict[str, str]]:
    """Return every row of a page's tables as {heading without its limit: cell without links}."""
    rows = []
    for table in re.findall(r'(?:^\|.*\|\n)+', text, re.M):
        plain = re.sub(r'\[(.*?)\]\(.*?\)', r'\1', table)
        headings, _, *cells = [
            [cell.strip() for cell in line[1:-1].split('|')] for line in plain.splitlines()
        ]
        names = [heading.partition(' (')[0] for heading in headings]
        rows += [dict(zip(names, row, strict=True)) for row in cells]
    return rows


def _figures(models: Iterable[Mapping[str, str]], heading: str) -> Iterator[float]:
    """Yield the figures of a column; a cell may hold several, and distances are in mm."""
    for model in models:
        for figure in filter(None, model.get(heading, '').split(', ')):
            yield float(figure.removesuffix(' mm'))


def _worst(choose: type[max] | type[min], values: Iterable[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return choose(measured) if measured else None


def readme(name: str, text: str, records: Sequence[Record], mmdet3d: Sequence[Record]) -> str:
    """Return the text of a README with today's table between its marks.

    Args:
        name: of the README, see `TEMPLATES`.
        text: of the README.
        records: of the zoo's configs of mmdet.
        mmdet3d: of its configs of mmdet3d.
    """
    listed_families: set[str] = set()

    def zoo(*families: str) -> Evidence:
        listed_families.update(families)
        return of_records([record for record in (*records, *mmdet3d) if record.family in families])

    def parity(detector: str) -> Evidence:
        return of_page(PARITY.read_text(encoding='utf-8'), detector)

    def in_no_row() -> int:
        return sum(record.family not in listed_families for record in (*records, *mmdet3d))

    values: Mapping[str, object] = dict(
        zoo=zoo,
        parity=parity,
        in_no_row=in_no_row,
        mmdet=count_records(records),
        mmdet3d=count_records(mmdet3d),
    )
    part = template(__file__, TEMPLATES[name]).render(values)
    before, _, rest = text.partition(BEGIN)
    return f'{before}{BEGIN}\n{part}\n{END}{rest.partition(END)[2]}'
