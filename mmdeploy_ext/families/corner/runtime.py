"""Detectors of corners without PyTorch: a `full` graph does all but taking the padding away."""

from mmdeploy_ext.families.query.runtime.model import RUNNERS, detections

__all__ = ['RUNNERS', 'detections']
