"""Prepared pictures as inputs of graphs of queries: those of dense graphs; with masks, those of SOLO."""

from mmdeploy_ext.families.dense.samples import feeds
from mmdeploy_ext.families.solo.samples import batches
from mmdeploy_ext.families.solo.samples import feeds as mask_feeds

__all__ = ['batches', 'feeds', 'mask_feeds']
