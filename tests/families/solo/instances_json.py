"""The JSON that the runners write of instances, read back."""

import numpy as np

from mmdeploy_ext.runtime.detections import Instances


def decoded(entry):
    """Return the instances of one image's JSON entry."""
    from pycocotools import mask as rle

    size = entry['height'], entry['width']
    masks = [
        rle.decode(rle.frPyObjects(one['segmentation'], *size)).astype(bool) for one in entry['detections']
    ]
    return Instances(
        np.stack(masks) if masks else np.zeros((0, *size), bool),
        np.array([one['score'] for one in entry['detections']], np.float32),
        np.array([one['label'] for one in entry['detections']], np.int64),
    )
