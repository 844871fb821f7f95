"""Detectors of queries with masks: their options, and what their files tell `families/query/runtime`."""

from mmdeploy_ext.families.query.options import OPTIONS, POSTPROCESS

__all__ = ['OPTIONS', 'POSTPROCESS']
