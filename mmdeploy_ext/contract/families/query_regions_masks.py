"""Detectors of queries with regions and masks: options, and what files tell `runtime/query_regions_masks`."""

from mmdeploy_ext.contract.families.two_stage_masks import PASTE_MASKS
from mmdeploy_ext.contract.schema import open_record
from mmdeploy_ext.contract.values import COUNT, FRACTION

OPTIONS = (PASTE_MASKS,)
POSTPROCESS = open_record(max_per_img=COUNT, num_classes=COUNT, mask_thr=FRACTION)
