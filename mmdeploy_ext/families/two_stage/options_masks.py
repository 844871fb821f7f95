"""Two-stage detectors with masks: their options, and what their files tell `families/two_stage/runtime`."""

from mmdeploy_ext.contract.schema import open_record
from mmdeploy_ext.contract.values import FRACTION
from mmdeploy_ext.families.parts.options import PASTE_MASKS
from mmdeploy_ext.families.two_stage import options as two_stage

OPTIONS = (*two_stage.OPTIONS, PASTE_MASKS)
FACTS = dict(two_stage.FACTS, mask_thr=FRACTION)
POSTPROCESS = open_record(**FACTS)
