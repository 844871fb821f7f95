"""Detectors of queries with regions and masks without PyTorch: pasted as those of two-stage ones."""

from mmdeploy_ext.families.parts.runtime.pasted_masks import RUNNERS, detections

__all__ = ['RUNNERS', 'detections']
