"""Detectors of queries that give panoptic maps: options, and what files tell `families/query/runtime`."""

from mmdeploy_ext.contract.schema import COUNT, FLAG, FRACTION, open_record
from mmdeploy_ext.families.query.options import OPTIONS

__all__ = ['OPTIONS', 'POSTPROCESS']
POSTPROCESS = open_record(
    num_classes=COUNT, num_things=COUNT, object_mask_thr=FRACTION, iou_thr=FRACTION, filter_low_score=FLAG
)
