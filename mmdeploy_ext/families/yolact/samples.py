"""Prepared pictures as inputs of YOLACT's graph: those of dense graphs, and one size of masks as SOLO's."""

from collections.abc import Sequence

import numpy as np

from mmdeploy_ext.families.parts.image_feeds import batches, mask_feeds
from mmdeploy_ext.families.parts.image_feeds import feeds as box_feeds
from mmdeploy_ext.preprocess.pictures import PreparedImage

__all__ = ['batches', 'feeds']


def feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch; masks are of the original size whatever `rescale` says."""
    return mask_feeds(images, rescale) | box_feeds(images, rescale)
