"""Prepared pictures as inputs of graphs of queries: those of dense graphs; with masks, those of SOLO."""

from projects.mmdet_plugin.dense.samples import feeds
from projects.mmdet_plugin.solo.samples import batches
from projects.mmdet_plugin.solo.samples import feeds as mask_feeds

__all__ = ['batches', 'feeds', 'mask_feeds']
