"""Two-stage detectors that are given their proposals: what their files tell `families/two_stage/runtime`."""

from mmdeploy_ext.families.two_stage.options import POSTPROCESS

__all__ = ['POSTPROCESS']
