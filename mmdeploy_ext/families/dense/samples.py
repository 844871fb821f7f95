"""Prepared pictures as inputs of dense graphs."""

from mmdeploy_ext.families.parts.image_feeds import feeds

__all__ = ['feeds']
