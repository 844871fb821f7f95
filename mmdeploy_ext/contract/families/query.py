"""Detectors of queries: their options, and what their files tell `runtime/query`."""

from mmdeploy_ext.contract.families.rtdetr import GRID_SAMPLE
from mmdeploy_ext.contract.schema import open_record
from mmdeploy_ext.contract.values import COUNT

OPTIONS = (GRID_SAMPLE,)
POSTPROCESS = open_record(max_per_img=COUNT, num_classes=COUNT)
