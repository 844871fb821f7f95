"""Detections as results of the data set; sweeps and dumps are CenterPoint's."""

from __future__ import annotations

from projects.mmdet3d_plugin.common.samples import result

__all__ = ['result']
