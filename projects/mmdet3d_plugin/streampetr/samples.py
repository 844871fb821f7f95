"""Samples of the test loader as frames, and detections as the results that the data set evaluates."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.runtime.frames import Frame
from projects.mmdet3d_plugin.common.samples import only, result

__all__ = ['frame', 'result']
KEYS = ('img', 'lidar2img', 'intrinsics', 'timestamp', 'ego_pose', 'ego_pose_inv', 'img_metas')


def frame(data: Mapping[str, Any]) -> Frame:
    """Return one collated sample of the test loader (batch 1, one augmentation) as a frame.

    Args:
        data: the keys of a StreamPETR test pipeline, in whatever lists and containers the loader puts them.

    Raises:
        DataError: a key is missing, or there is more than one sample or augmentation.
    """
    missing = [key for key in KEYS if key not in data]
    if missing:
        raise DataError(f'the test pipeline gives no {", ".join(missing)}; add them to the keys of Collect3D')
    values = {key: only(data[key], key) for key in KEYS}
    meta = values['img_metas']
    if not isinstance(meta, dict) or 'scene_token' not in meta:
        raise DataError('img_metas has no scene_token; add it to the meta_keys of Collect3D')
    files = meta.get('filename') or ()
    return Frame(
        images=_array(values['img'], 4).astype(np.float32),
        lidar2img=_array(values['lidar2img'], 3).astype(np.float64),
        intrinsics=_array(values['intrinsics'], 3).astype(np.float64),
        ego_pose=_array(values['ego_pose'], 2).astype(np.float64),
        timestamp_s=float(_array(values['timestamp'], 0)),
        scene_token=str(meta['scene_token']),
        name=str(meta.get('sample_idx', '')),
        image_files=tuple(map(str, [files] if isinstance(files, str) else files)),
        ego_pose_inv=_array(values['ego_pose_inv'], 2).astype(np.float64),
    )


def _array(value: Any, axes: int) -> np.ndarray:
    """Return an array with its last `axes` axes; the ones before have to be 1."""
    array = value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return array.reshape(array.shape[array.ndim - axes :])
