"""Detectors of queries with masks without PyTorch: a `full` graph does all of it."""

from mmdeploy_ext.families.query.runtime.model import RUNNERS, detections

__all__ = ['RUNNERS', 'detections']
