"""Parts of mmdet3d that need a GPU or a missing library."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

POINT_SETS = 'furthest point sampling and ball query (mmcv.ops.furthest_point_sample, ball_query)'
MISSING_KERNELS = dict(
    PointNet2SASSG=POINT_SETS,
    PointNet2SAMSG=POINT_SETS,
    PAConvCUDASAModule='scores of neighbours (mmcv.ops.assign_score_withk)',
    VoteHead=POINT_SETS,
    DGCNNBackbone='nearest neighbours (mmcv.ops.knn)',
    PartAggregationROIHead='RoI-aware pooling (mmcv.ops.RoIAwarePool3d)',
    PointRCNNRoIHead='pooling of points in boxes (mmcv.ops.RoIPointPool3d)',
)
"""Class name of a part -> its operator that mmcv has for a GPU alone."""
MISSING_LIBRARIES = dict(MinkResNet='MinkowskiEngine, a library of sparse convolutions with its own tensors')
"""Class name of a part -> the missing library of its operators."""


def missing_operators(model: Mapping[str, Any]) -> list[str]:
    """Return a reason for each class of parts of a config's `model` that lacks an operator."""
    reasons = []
    for name in sorted(set(_type_names(model))):
        if name in MISSING_KERNELS:  # the zoo knows this reason by its last words
            reasons.append(f'{name} needs {MISSING_KERNELS[name]}, not implemented on CPU')
        elif name in MISSING_LIBRARIES:
            reasons.append(f'{name} needs {MISSING_LIBRARIES[name]}')
    return reasons


def _type_names(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get('type'), str):
            yield part['type']
        for value in part.values():
            yield from _type_names(value)
    elif isinstance(part, Sequence) and not isinstance(part, str):
        for value in part:
            yield from _type_names(value)
