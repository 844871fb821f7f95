"""Two-stage detectors that are given their proposals: results as those of detectors that find some."""

from mmdeploy_ext.families.two_stage.runtime.model import detections

__all__ = ['detections']
RUNNERS: dict[str, str] = {}
"""None: pictures come without proposals."""
