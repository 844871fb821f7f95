"""Options of detectors of queries, and what their files tell the runtimes."""

from mmdeploy_ext.contract.schema import COUNT, FLAG, FRACTION, open_record
from mmdeploy_ext.families.parts.options import GRID_SAMPLE, PASTE_MASKS

OPTIONS = (GRID_SAMPLE,)
"""Options of detectors that give boxes."""
REGION_MASK_OPTIONS = (PASTE_MASKS,)
"""Options of detectors of regions that give boxes with masks."""
REGION_KEEP_FP32 = ('network/[!bn]*', 'postprocess/*')
"""Nodes of detectors of regions that stay float32: all but backbone and neck, as of two-stage detectors."""
PANOPTIC_KEEP_FP32 = ('fusion/*',)
"""The same of panoptic maps, whose numbers of pixels are larger than float16 has."""
POSTPROCESS = open_record(max_per_img=COUNT, num_classes=COUNT)
"""The entry `postprocess` of the metadata, of boxes."""
REGION_MASK_POSTPROCESS = open_record(max_per_img=COUNT, num_classes=COUNT, mask_thr=FRACTION)
"""The same of boxes with masks."""
PANOPTIC_POSTPROCESS = open_record(
    num_classes=COUNT, num_things=COUNT, object_mask_thr=FRACTION, iou_thr=FRACTION, filter_low_score=FLAG
)
"""The same of panoptic maps."""
