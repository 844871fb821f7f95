"""Detectors of queries with masks: their options, and what their files tell `runtime/query_masks`."""

from mmdeploy_ext.contract.families.query import OPTIONS, POSTPROCESS

__all__ = ['OPTIONS', 'POSTPROCESS']
