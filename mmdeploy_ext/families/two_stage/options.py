"""Options of two-stage detectors, and what their files tell `families/two_stage/runtime`."""

from mmdeploy_ext.contract.options import MAX_CANDIDATES, MAX_PROPOSALS
from mmdeploy_ext.contract.schema import COUNT, FLAG, FRACTION, LIMIT, number, open_record
from mmdeploy_ext.families.parts.options import PASTE_MASKS

OPTIONS = (MAX_CANDIDATES, MAX_PROPOSALS)
"""Options of detectors that give boxes."""
MASK_OPTIONS = (*OPTIONS, PASTE_MASKS)
"""Options of detectors that give boxes with masks."""
KEEP_FP32 = ('proposals/*', 'regions/*', 'paste/*')
"""Nodes that stay float32 in float16 files: boxes in float16 are half a pixel coarse."""
PANOPTIC_KEEP_FP32 = (*KEEP_FP32, 'fusion/*')
"""The same of panoptic maps."""
LIMITS = dict(
    score_thr=number(), nms_pre=LIMIT, iou_threshold=FRACTION, max_per_img=LIMIT, class_agnostic=FLAG
)
"""Settings of a suppression."""
FACTS = dict(LIMITS, num_classes=COUNT, proposals=open_record(**LIMITS))
"""Entries of `postprocess`: settings of the results, and of the proposals."""
POSTPROCESS = open_record(**FACTS)
"""The entry `postprocess` of the metadata, of boxes."""
MASK_POSTPROCESS = open_record(**FACTS, mask_thr=FRACTION)
"""The same of boxes with masks."""
PANOPTIC_POSTPROCESS = open_record(
    **FACTS,
    mask_thr=FRACTION,
    num_things=COUNT,
    mask_overlap=FRACTION,
    stuff_area_limit=number(0, 10**9, integer=True),
)
"""The same of panoptic maps."""
