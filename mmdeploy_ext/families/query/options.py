"""Detectors of queries: their options, and what their files tell `families/query/runtime`."""

from mmdeploy_ext.contract.schema import COUNT, open_record
from mmdeploy_ext.families.parts.options import GRID_SAMPLE

OPTIONS = (GRID_SAMPLE,)
POSTPROCESS = open_record(max_per_img=COUNT, num_classes=COUNT)
