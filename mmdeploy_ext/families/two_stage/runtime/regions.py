"""Two-stage detectors whose proposals are an input, without PyTorch; their graphs do all post-processing."""

from mmdeploy_ext.families.parts.runtime.padded_results import detections

__all__ = ['detections']
RUNNERS: dict[str, str] = {}
"""No command draws the results of such a file: pictures come without proposals."""
