"""Level 3 of the decoding behind a head: the runtime's and the model's decode the same synthetic outputs.

Samples reach few of the limits of post-processing, and rarely have headings near -pi or pi. Synthetic outputs
reach all of them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proving.levels.attempts import attempt, failed_detections
from mmdeploy_ext.proving.results import Case, DetectionRow
from mmdeploy_ext.proving.tasks import bbox3d
from mmdeploy_ext.proving.tasks.matching import with_reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.runtime.detections3d import Detections3D

NAME = 'synthetic outputs of the head'
MIN_GAP = 1e-4
"""Smallest gap between the scores of the last result within a limit and the first beyond it; rounding changes
scores by far less."""


def limit_between(detections: Detections3D, groups: np.ndarray) -> int:
    """Return a limit of results that cuts off some of a sample's, between scores that differ clearly.

    Args:
        detections: as many as the model's own limit lets through.
        groups: (n,) group of each result; the limit holds for each group.

    Returns:
        The limit, that of the widest gap, at least a quarter of the largest group; 0 if no gap is above
        `MIN_GAP`.
    """
    ordered = [-np.sort(-detections.scores[groups == group]) for group in np.unique(groups)]
    longest = max(map(len, ordered), default=0)
    widest_gap, best_limit = MIN_GAP, 0
    for limit in range(max(longest // 4, 1), longest):
        gaps = [scores[limit - 1] - scores[limit] for scores in ordered if len(scores) > limit]
        if min(gaps) > widest_gap:
            widest_gap, best_limit = float(min(gaps)), limit
    return best_limit


def synthetic_cases(
    reference: Any, runner: Any, inputs: Iterable[tuple[str, Mapping[str, np.ndarray]]]
) -> Iterator[Case]:
    """Yield a case for each of some synthetic outputs.

    Args:
        reference: PyTorch's stepper, whose `boxes_of(outputs)` returns the detections, best first, of outputs
            of the last file.
        runner: the stepper of the files, with the same method.
        inputs: (title, name -> output of the last file) of each case.
    """
    for title, outputs in inputs:
        expected: Detections3D = reference.boxes_of(outputs)
        detections = attempt(lambda outputs=outputs: runner.boxes_of(outputs))
        yield Case(f'{NAME}: {title}', '', False, detections=(match_with_headings(expected, detections),))


def cases_of_family(family: Any, model: Any, reference: Any, runner: Any, spec: GraphSpec) -> Iterator[Case]:
    """Yield cases of a family's synthetic outputs, with the model's own limits and with other ones.

    Args:
        family: a `SequenceFamily`.
        model: the detector.
        reference: PyTorch's stepper, see `synthetic_cases`.
        runner: the stepper of the files.
        spec: contract of the last file, which gives the outputs that are decoded.
    """
    outputs = list(family.synthetic_outputs(model, runner, spec))
    yield from synthetic_cases(reference, runner, outputs)
    for title, limits in family.other_limits(model, runner, spec):
        with limits:
            yield from synthetic_cases(
                reference, runner, [(f'{name}, {title}', values) for name, values in outputs]
            )


def match_with_headings(expected: Detections3D, detections: Detections3D | Exception) -> DetectionRow:
    """Match two lists as `match_all` does; headings that differ by a whole turn fail here, too.

    `expected` and `detections` are those of `match_all`.
    """
    row = match_all(expected, detections)
    if row.broken or isinstance(detections, Exception):
        return row
    pairs = bbox3d.pair_up(expected, detections).matched
    expected_yaw, yaw = (
        side.boxes[list(rows), 6].astype(np.float64)
        for side, rows in ((expected, pairs.keys()), (detections, pairs.values()))
    )
    turned = int((np.abs(expected_yaw - yaw) > bbox3d.YAW_BAR).sum())
    if not turned:
        return row
    return with_reason(row, f'{turned} headings are a turn more or less than those of the model')


def match_all(expected: Detections3D, detections: Detections3D | Exception) -> DetectionRow:
    """Match two lists by the bars of samples; each result below the score threshold needs a partner, too.

    Args:
        expected: boxes that PyTorch decoded.
        detections: boxes of the files' runtime, or the exception that it raised, which fails.
    """
    if isinstance(detections, Exception):
        return failed_detections('boxes', expected, detections)
    row = bbox3d.match_detections('boxes', expected, detections)
    if row.broken:
        return row
    if row.low_alone:
        alone = f'{row.low_alone} of {row.low} results below the score threshold have no partner'
        row = with_reason(row, alone)
    return dataclasses.replace(row, low=0, low_alone=0)
