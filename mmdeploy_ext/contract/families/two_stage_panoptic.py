"""Two-stage detectors that give panoptic maps: what their files tell `runtime/two_stage_panoptic`."""

from mmdeploy_ext.contract.families import two_stage_masks
from mmdeploy_ext.contract.schema import number, open_record
from mmdeploy_ext.contract.values import COUNT, FRACTION

POSTPROCESS = open_record(
    **two_stage_masks.FACTS,
    num_things=COUNT,
    mask_overlap=FRACTION,
    stuff_area_limit=number(0, 10**9, whole=True),
)
