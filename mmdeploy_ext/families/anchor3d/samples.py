"""Detections as results of the data set; sweeps and dumps are CenterPoint's."""

from mmdeploy_ext.families.parts.samples import result

__all__ = ['result']
