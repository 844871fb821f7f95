"""Detectors of corners: what their files tell `runtime/corner`."""

from mmdeploy_ext.contract.families.query import POSTPROCESS

__all__ = ['POSTPROCESS']
