"""Samples of the test loader of several cameras with poses, as frames: those of StreamPETR's data set.

Glossary: N cameras.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.families.parts.samples import check_given, only, picture_files
from mmdeploy_ext.runtime.frames import Frame

KEYS = ('img', 'lidar2img', 'intrinsics', 'timestamp', 'ego_pose', 'ego_pose_inv', 'img_metas')
"""Keys that a sample of the test loader has to have; `img_timestamp`, the cameras' times in seconds, may be
there."""


def stream_frame(data: Mapping[str, Any]) -> Frame:
    """Return `data`, one collated sample of the test loader (batch 1, one augmentation) by key, as a frame.

    The loader's lists and containers are taken off. DataError: a key or the `scene_token` of `img_metas` is
    missing, or there are several samples.
    """
    check_given(data, KEYS)
    values = {key: only(data[key], key) for key in KEYS}
    meta = values['img_metas']
    if not isinstance(meta, dict) or 'scene_token' not in meta:
        raise DataError('img_metas has no scene_token; add it to the meta_keys of Collect3D')
    times = None
    if 'img_timestamp' in data:
        times = as_array(only(data['img_timestamp'], 'img_timestamp'), 1).astype(np.float64)
    return Frame(
        images=as_array(values['img'], 4).astype(np.float32),
        lidar2img=as_array(values['lidar2img'], 3).astype(np.float64),
        intrinsics=as_array(values['intrinsics'], 3).astype(np.float64),
        ego_pose=as_array(values['ego_pose'], 2).astype(np.float64),
        timestamp_s=float(as_array(values['timestamp'], 0)),
        scene_token=str(meta['scene_token']),
        name=str(meta.get('sample_idx', '')),
        image_files=picture_files(meta),
        ego_pose_inv=as_array(values['ego_pose_inv'], 2).astype(np.float64),
        camera_times_s=times,
    )


def as_array(value: Any, axes: int) -> np.ndarray:
    """Return an array with its last `axes` axes alone; the axes before them have length 1."""
    array = value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return array.reshape(array.shape[array.ndim - axes :])
