"""Two-stage detectors whose proposals are an input, without PyTorch."""

from mmdeploy_ext.families.parts.runtime.padded_results import detections

__all__ = ['detections']
RUNNERS: dict[str, str] = {}
"""There is none: pictures come without proposals."""
