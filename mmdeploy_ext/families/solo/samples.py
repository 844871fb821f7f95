"""Prepared pictures as inputs of SOLO graphs."""

from mmdeploy_ext.families.parts.image_feeds import batches
from mmdeploy_ext.families.parts.image_feeds import mask_feeds as feeds
from mmdeploy_ext.preprocess.pictures import PreparedImage

__all__ = ['batches', 'feeds', 'whole']


def whole(image: PreparedImage) -> tuple[int, int]:
    """Return the size that soft masks have: up to a multiple of 8; see `ImageFamily.whole`."""
    return tuple(-(-side // 8) * 8 for side in image.tensor.shape[1:])
