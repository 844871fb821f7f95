"""Two-stage detectors with masks without PyTorch: masks in the frame of boxes are pasted into images.

Source of the algorithm: mmdet 2.28.2 `mask_heads/fcn_mask_head.py` (`get_seg_masks`, `_do_paste_mask`), and
`grid_sample` of PyTorch (bilinear, zeros outside, `align_corners=False`), all in float32.
"""

from __future__ import annotations

from mmdeploy_ext.families.parts.runtime.pasted_masks import RUNNERS, detections

__all__ = ['RUNNERS', 'detections']
