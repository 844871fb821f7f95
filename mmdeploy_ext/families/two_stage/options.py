"""Options of two-stage detectors."""

from mmdeploy_ext.contract.options import MAX_CANDIDATES, MAX_PROPOSALS
from mmdeploy_ext.families.parts.options import PASTE_MASKS

OPTIONS = (MAX_CANDIDATES, MAX_PROPOSALS)
"""Options of detectors that give boxes."""
MASK_OPTIONS = (*OPTIONS, PASTE_MASKS)
"""Options of detectors that give boxes with masks."""
KEEP_FP32 = ('proposals/*', 'regions/*', 'paste/*')
"""Nodes that stay float32 in float16 files: boxes in float16 are half a pixel coarse."""
PANOPTIC_KEEP_FP32 = (*KEEP_FP32, 'fusion/*')
"""The same of panoptic maps."""
