"""Detectors of queries without PyTorch: a `full` graph does all of it."""

from __future__ import annotations

from mmdeploy_ext.families.parts.runtime.padded_results import RUNNERS, detections

__all__ = ['RUNNERS', 'detections']
