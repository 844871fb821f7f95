"""Two-stage detectors that are given their proposals: what their files tell `runtime/two_stage_regions`."""

from mmdeploy_ext.contract.families.two_stage import POSTPROCESS

__all__ = ['POSTPROCESS']
