"""Prepared pictures as inputs of graphs of corners: those of dense graphs."""

from projects.mmdet_plugin.dense.samples import feeds

__all__ = ['feeds']
