"""BEVFusion whole: what its files tell `runtime/bevfusion_det`."""

from __future__ import annotations

from mmdeploy_ext.contract.schema import items, one_of, record
from mmdeploy_ext.contract.values import COUNT, FLAG

POSTPROCESS = record(
    dict(sensors=items(one_of('camera', 'lidar'), 1, 2), queries=COUNT, uses_points=FLAG), closed=False
)
