"""Prepared pictures as inputs of graphs of queries: those of dense graphs; with masks, those of SOLO."""

from mmdeploy_ext.families.parts.image_feeds import batches, feeds, mask_feeds

__all__ = ['batches', 'feeds', 'mask_feeds']
