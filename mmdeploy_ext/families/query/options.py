"""Options of detectors of queries."""

from mmdeploy_ext.families.parts.options import GRID_SAMPLE, PASTE_MASKS

OPTIONS = (GRID_SAMPLE,)
"""Options of detectors that give boxes."""
REGION_MASK_OPTIONS = (PASTE_MASKS,)
"""Options of detectors of regions that give boxes with masks."""
REGION_KEEP_FP32 = ('network/[!bn]*', 'postprocess/*')
"""Nodes of detectors of regions that stay float32: all but backbone and neck, as of two-stage detectors."""
PANOPTIC_KEEP_FP32 = ('fusion/*',)
"""The same of panoptic maps, whose numbers of pixels are larger than float16 has."""
