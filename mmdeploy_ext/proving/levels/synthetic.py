"""Level 3 of what follows a head: synthetic outputs through the runtime's decoding and through the model's.

Samples reach few of the limits of post-processing, and rarely a heading at the end of a turn. Outputs that
are made for it reach them all, and both sides get the same numbers.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proving.levels.run_twice import attempt, nothing_found
from mmdeploy_ext.proving.results import Case, DetectionRow
from mmdeploy_ext.proving.tasks import bbox3d

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.runtime.detections3d import Detections3D

NAME = 'synthetic outputs of the head'


def synthetic_cases(
    reference: Any, runner: Any, inputs: Iterable[tuple[str, Mapping[str, np.ndarray]]]
) -> Iterator[Case]:
    """Yield a case for each title and outputs by name.

    Both engines have `boxes_of(outputs)`: of the outputs of the last file what they find, best first.
    """
    for title, outputs in inputs:
        expected: Detections3D = reference.boxes_of(outputs)
        found = attempt(lambda outputs=outputs: runner.boxes_of(outputs))
        yield Case(f'{NAME}: {title}', '', False, detections=(judge(expected, found),))


def cases_of_family(family: Any, model: Any, reference: Any, runner: Any, spec: GraphSpec) -> Iterator[Case]:
    """Yield cases of a family's synthetic outputs, by the model's own limits and by its other ones.

    Args:
        family: of `SequenceFamily`.
        model: the detector.
        reference: PyTorch's stepper, see `synthetic_cases`.
        runner: that of the files.
        spec: of the last file.
    """
    outputs = list(family.synthetic_outputs(model, runner, spec))
    yield from synthetic_cases(reference, runner, outputs)
    for title, limits in family.other_limits(model, runner, spec):
        with limits:
            yield from synthetic_cases(
                reference, runner, [(f'{name}, {title}', values) for name, values in outputs]
            )


def judge(expected: Detections3D, found: Detections3D | Exception) -> DetectionRow:
    """Match two lists by the bars of samples, and headings also without a turn more or less."""
    row = judge_all(expected, found)
    if row.broken or isinstance(found, Exception):
        return row
    pairs = bbox3d.pair_up(expected, found).matched
    one, two = (
        side.boxes[list(rows), 6].astype(np.float64)
        for side, rows in ((expected, pairs.keys()), (found, pairs.values()))
    )
    turned = int((np.abs(one - two) > bbox3d.YAW_BAR).sum())
    return with_reason(
        row, f'{turned} headings are a turn more or less than those of the model' if turned else ''
    )


def judge_all(expected: Detections3D, found: Detections3D | Exception) -> DetectionRow:
    """Match two lists by the bars of samples; each result below the score threshold needs a partner, too."""
    if isinstance(found, Exception):
        return nothing_found('boxes', expected, found)
    row = bbox3d.match_detections('boxes', expected, found)
    if row.broken:
        return row
    alone = f'{row.low_alone} of {row.low} results below the score threshold have no partner'
    return dataclasses.replace(with_reason(row, alone if row.low_alone else ''), low=0, low_alone=0)


def with_reason(row: DetectionRow, reason: str) -> DetectionRow:
    """Return a row that fails for one reason more; '' leaves it as it is."""
    if not reason:
        return row
    return dataclasses.replace(row, passed=False, reason=f'{row.reason}, {reason}' if row.reason else reason)
