"""Detectors of queries with regions and masks without PyTorch: pasted as those of two-stage ones."""

from mmdeploy_ext.runtime.two_stage_masks.model import RUNNERS, detections

__all__ = ['RUNNERS', 'detections']
