"""Two-stage detectors: their options, and what their files tell `families/two_stage/runtime`."""

from mmdeploy_ext.contract.options import MAX_CANDIDATES, MAX_PROPOSALS
from mmdeploy_ext.contract.schema import number, open_record
from mmdeploy_ext.contract.values import COUNT, FLAG, FRACTION, LIMIT

OPTIONS = (MAX_CANDIDATES, MAX_PROPOSALS)
LIMITS = dict(
    score_thr=number(), nms_pre=LIMIT, iou_threshold=FRACTION, max_per_img=LIMIT, class_agnostic=FLAG
)
FACTS = dict(LIMITS, num_classes=COUNT, proposals=open_record(**LIMITS))
POSTPROCESS = open_record(**FACTS)
