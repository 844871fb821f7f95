"""Checks of what the contract of a `full` graph promises besides its results: order, padding, counts.

A `full` graph contains the post-processing: its outputs are detections. The matching of results depends
neither on their order nor on padding, so they are checked here. Each check returns failing rows, none if the
promise is kept. Needs numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.proving.tensors import failed_row

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.proving.tensors import TensorRow


def shape_rows(outputs: Mapping[str, np.ndarray], spec: GraphSpec) -> list[TensorRow]:
    """Return a failing row for every output with results whose axes or fixed sizes differ from its contract.

    `outputs` are name -> array of the graph, of which an absent one has no row; `spec` is its contract.
    """
    rows = []
    for tensor in spec.outputs:
        array = outputs.get(tensor.name)
        if tensor.compare != 'detections' or array is None:  # others are compared with the reference
            continue
        sizes = zip(tensor.axes, array.shape, strict=False)
        if len(tensor.axes) != array.ndim or any(
            isinstance(axis, int) and axis != size for axis, size in sizes
        ):
            reason = f'shape: got {"x".join(map(str, array.shape))}, expected {tensor.shape_text()}'
            rows.append(failed_row(tensor.name, reason, array))
    return rows


def order_rows(outputs: Mapping[str, np.ndarray], num_classes: int) -> list[TensorRow]:
    """Return a failing row for every promise about scores and labels that an output breaks.

    Scores are finite and descend; a row of score 0 is padding and has label -1, and no other row has it;
    padding comes last, and an image that has some has no negative score; the other labels are in
    0..num_classes - 1.

    Args:
        outputs: name -> array, all of them there: `dets` (B, n, columns), whose last column is the score, or
            `scores` (B, n), and whole numbers `labels` (B, n); B images, n results, which may be 0.
        num_classes: number of classes of the model.
    """
    name, scores = ('dets', outputs['dets'][..., -1]) if 'dets' in outputs else ('scores', outputs['scores'])
    labels, rows = outputs['labels'], []
    if labels.shape != scores.shape:
        return [failed_row('labels', f'shape: got {labels.shape}, expected {scores.shape}', labels)]
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        image, row = bad[0]
        rows.append(failed_row(name, f'a score is {scores[image, row]}: image {image}, row {row}', scores))
    rising = np.argwhere(np.diff(scores, axis=1) > 0)
    if len(rising):
        image, row = rising[0]
        rows.append(failed_row(name, f'scores do not descend: image {image}, row {row + 1}', scores))
    padding = scores == 0
    for title, wrong in (
        ('padding without label -1', padding & (labels != -1)),
        ('a negative score behind padding', (scores < 0) & np.logical_or.accumulate(padding, axis=1)),
        (f'a label outside of 0..{num_classes - 1}', ~padding & ((labels < 0) | (labels >= num_classes))),
    ):
        if wrong.any():
            image, row = np.argwhere(wrong)[0]
            reason = f'{title}: image {image}, row {row}: {labels[image, row]}'
            rows.append(failed_row('labels', reason, labels))
    return rows


def count_rows(
    outputs: Mapping[str, np.ndarray], bounds: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> list[TensorRow]:
    """Return a failing row for each output of `bounds` that is absent, or has a number outside of its bounds.

    They are numbers of candidates, which tell whether boxes were left out. A file exported with
    `--max-candidates` gives the number before its cut; one with `--max-proposals` how many boxes the
    suppression of proposals has to look at: all of them, or no more than the limit if there are as many
    proposals as there may be.

    Args:
        outputs: outputs of the graph, some of them (B,) numbers of candidates.
        bounds: name of such an output -> smallest and largest right value (B,), see
            `ImageFamily.candidate_bounds`.
    """
    rows = []
    for name, (lower, upper) in bounds.items():
        if name not in outputs:
            rows.append(failed_row(name, 'is not an output of the graph'))
            continue
        counts = np.asarray(outputs[name])
        if counts.shape != lower.shape or ((counts < lower) | (counts > upper)).any():
            limits = zip(lower, upper, strict=True)
            expected = ', '.join(f'{low}' if low == high else f'{low} to {high}' for low, high in limits)
            rows.append(failed_row(name, f'got {counts.tolist()}, expected {expected}', counts))
    return rows
