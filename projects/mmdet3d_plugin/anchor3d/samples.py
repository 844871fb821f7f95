"""Detections as results of the data set; sweeps and dumps are CenterPoint's."""

from projects.mmdet3d_plugin.common.samples import result

__all__ = ['result']
