"""Prepared pictures as inputs of graphs of corners: those of dense graphs."""

from mmdeploy_ext.families.parts.image_feeds import feeds

__all__ = ['feeds']
