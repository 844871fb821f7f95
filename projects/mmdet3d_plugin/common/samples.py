"""Values out of the test loader's containers, and detections as results of a 3D data set."""

from typing import Any

import numpy as np
import torch
from mmcv.parallel import DataContainer

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.runtime.detections3d import Detections3D


def only(value: Any, key: str) -> Any:
    """Take the one value out of lists and containers; lists of matrices stay.

    Raises:
        DataError: there is more than one.
    """
    while True:
        if isinstance(value, DataContainer):
            value = value.data
        elif isinstance(value, list | tuple) and not isinstance(value[0] if value else None, np.ndarray):
            if len(value) != 1:
                raise DataError(f'{key}: got {len(value)} samples or augmentations, expected one')
            value = value[0]
        else:
            return value


def result(detections: Detections3D) -> dict[str, Any]:
    """Return detections as one entry of the results that mmdet3d's nuScenes data sets evaluate."""
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    boxes = torch.from_numpy(np.ascontiguousarray(detections.boxes, np.float32))
    return dict(
        pts_bbox=dict(
            boxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
            scores_3d=torch.from_numpy(np.ascontiguousarray(detections.scores)),
            labels_3d=torch.from_numpy(np.ascontiguousarray(detections.labels)),
        )
    )
