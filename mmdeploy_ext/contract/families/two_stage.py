"""Two-stage detectors: what their files tell `runtime/two_stage`."""

from __future__ import annotations

from mmdeploy_ext.contract.schema import number, record
from mmdeploy_ext.contract.values import COUNT, FLAG, FRACTION, LIMIT

LIMITS = dict(
    score_thr=number(), nms_pre=LIMIT, iou_threshold=FRACTION, max_per_img=LIMIT, class_agnostic=FLAG
)
FACTS = dict(LIMITS, num_classes=COUNT, proposals=record(LIMITS, closed=False))
POSTPROCESS = record(FACTS, closed=False)
