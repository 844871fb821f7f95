"""Detectors of queries with regions without PyTorch: a `full` graph does all of it."""

from mmdeploy_ext.families.parts.runtime.padded_results import RUNNERS, detections

__all__ = ['RUNNERS', 'detections']
