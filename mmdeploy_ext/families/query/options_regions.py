"""Detectors of queries with regions: what their files tell `families/query/runtime`."""

from mmdeploy_ext.families.query.options import POSTPROCESS

__all__ = ['POSTPROCESS']
