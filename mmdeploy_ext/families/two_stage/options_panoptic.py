"""Two-stage detectors that give panoptic maps: what their files tell `families/two_stage/runtime`."""

from mmdeploy_ext.contract.schema import number, open_record
from mmdeploy_ext.contract.values import COUNT, FRACTION
from mmdeploy_ext.families.two_stage import options_masks as two_stage_masks

POSTPROCESS = open_record(
    **two_stage_masks.FACTS,
    num_things=COUNT,
    mask_overlap=FRACTION,
    stuff_area_limit=number(0, 10**9, whole=True),
)
