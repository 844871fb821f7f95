"""Detectors of queries with regions and masks: options, and what files tell `families/query/runtime`."""

from mmdeploy_ext.contract.schema import COUNT, FRACTION, open_record
from mmdeploy_ext.families.parts.options import PASTE_MASKS

OPTIONS = (PASTE_MASKS,)
POSTPROCESS = open_record(max_per_img=COUNT, num_classes=COUNT, mask_thr=FRACTION)
