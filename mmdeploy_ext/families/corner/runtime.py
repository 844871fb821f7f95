"""Detectors of corners without PyTorch: a `full` graph does all but taking the padding away."""

from mmdeploy_ext.families.parts.runtime.padded_results import RUNNERS, detections

__all__ = ['RUNNERS', 'detections']
