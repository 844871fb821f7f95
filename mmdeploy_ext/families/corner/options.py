"""Detectors of corners: what their files tell `families/corner/runtime`."""

from mmdeploy_ext.families.query.options import POSTPROCESS

__all__ = ['POSTPROCESS']
