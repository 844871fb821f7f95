"""Contracts of tensors of rotated boxes that several families have. Glossary: B batch, n results."""

import numpy as np

from mmdeploy_ext.families.images import ColumnGroup, TensorSpec

Axis = int | str
"""The size of an axis, or the letter of a dynamic one."""
PIXELS = ColumnGroup(name='xywh', columns=(0, 1, 2, 3), unit='pixel')
ANGLE = ColumnGroup(name='angle', columns=(4,), unit='rad', atol=1e-4 * float(np.pi))
"""Angles that are all near zero have no scale of their own: the bar is that of an angle of pi."""


def rotated_outputs(batch: Axis, rows: Axis) -> tuple[TensorSpec, ...]:
    """Return the contracts of `dets` and `labels`, outputs of a `full` graph.

    `batch` is the number of images, `rows` a constant number of results per image, or they are the letters of
    these axes: a dynamic one has the results of the image that has most.
    """
    boxes = (
        'x y of the centre, width, height, angle in radians (clockwise), score, in descending score order; '
        'pixels of the network input, of the original image when scale_factor is fed; padded with zeros'
    )
    labels = 'class indices; -1 where dets is padding'
    return (
        TensorSpec('dets', 'float32', (batch, rows, 6), boxes, compare='detections'),
        TensorSpec('labels', 'int64', (batch, rows), labels, compare='detections'),
    )
