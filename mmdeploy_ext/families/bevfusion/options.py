"""BEVFusion: its options, and the schema of the post-processing in the metadata of its files."""

import dataclasses
from typing import Any

from mmdeploy_ext.contract.options import CONTRACT as DECLARED
from mmdeploy_ext.contract.options import SPARSE_FORM
from mmdeploy_ext.contract.schema import (
    COUNT,
    FLAG,
    POSITIVE,
    RANGE,
    either,
    exactly,
    full_record,
    items,
    maybe,
    number,
    one_of,
    open_record,
    record,
)

PORTABLE, CUDA, AUTOWARE = 'portable', 'cuda-bevfusion', 'autoware'
"""Choices of `--contract`."""
CONTRACT = dataclasses.replace(
    DECLARED,
    default=PORTABLE,
    help='portable: graphs of standard operators, points to boxes (default); cuda-bevfusion: the files '
    "that NVIDIA's CUDA-BEVFusion loads, by its names and shapes; autoware: the file that Autoware's "
    'bevfusion loads, of models of LiDAR alone',
    choices=(PORTABLE, CUDA, AUTOWARE),
    fixes={CUDA: dict(opset=13, exporter='torchscript', precision='fp32'), AUTOWARE: dict(precision='fp32')},
)
OPTIONS = (CONTRACT, dataclasses.replace(SPARSE_FORM, only_with=('contract', PORTABLE)))
"""Options of the family."""
NUMBERS, TRIPLE = items(number(), 1), exactly(3, number())
"""Checks of lists of one number or more, and of three."""
CLASSES = items(number(0, 1000, integer=True), 1)
"""Check of a list of one label of a class or more."""
CIRCLE = full_record(classes=CLASSES, radius=number(0), most=COUNT)
"""Check of the suppression of a group of classes by `radius`, a squared distance in m2.

`most` is the largest number of results of the group.
"""
ROTATED = full_record(
    classes=CLASSES, most=COUNT, overlap=number(0, 1), first=maybe(COUNT), scales=items(POSITIVE, 1)
)
"""Check of the suppression of a group of classes by `overlap`, an IoU in the bird's-eye view.

`scales` are factors of the sizes of each class, `first` the number of best boxes that enter (None: all), and
`most` is the largest number of results of the group.
"""


def check_group(value: Any, key: str) -> None:
    """Refuse, with a Mismatch, the suppression of a group of classes that does not pass its check.

    The check is `ROTATED` if the value has an `overlap`, else `CIRCLE`. `key` is the place of the value in
    the metadata, for messages.
    """
    (ROTATED if isinstance(value, dict) and 'overlap' in value else CIRCLE)(value, key)


POSTPROCESS = open_record(
    sensors=items(one_of('camera', 'lidar'), 1, 2),
    queries=COUNT,
    uses_points=FLAG,
    view=record(
        dict(
            image_size=exactly(2, COUNT),
            columns=NUMBERS,
            rows=NUMBERS,
            depths=NUMBERS,
            centre=TRIPLE,
            step=TRIPLE,
            count=exactly(3, COUNT),
        )
    ),
    nms=maybe(either(CIRCLE, items(check_group, 1))),
    coder=record(
        dict(
            pc_range=items(number(), 2, 6),
            voxel_size=items(POSITIVE, 2, 3),
            out_size_factor=COUNT,
            post_center_range=maybe(RANGE),
            score_threshold=maybe(number()),
        )
    ),
)
"""Schema of `graphs.postprocess_facts`.

`queries` is the number of boxes before suppression, `uses_points` whether the cameras take depth maps of the
LiDAR, `view` the frustum and the grid of `runtime.geometry.View`, `coder` the settings of the box coder.
"""
