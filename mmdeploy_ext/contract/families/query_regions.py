"""Detectors of queries with regions: what their files tell `runtime/query_regions`."""

from mmdeploy_ext.contract.families.query import POSTPROCESS

__all__ = ['POSTPROCESS']
