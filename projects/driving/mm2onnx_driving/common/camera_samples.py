"""Frames of several cameras from samples of the test loader and from dumps.

Glossary: N cameras.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.families.common.samples import check_dumped, only, picture_files
from mmdeploy_ext.runtime.frames import Frame

KEYS = dict(
    lidar2img=('lidar2img', 'projection_mat'),
    intrinsics=('intrinsics',),
    ego_pose=('ego_pose', 'T_global'),
    ego_pose_inv=('ego_pose_inv',),
    timestamp_s=('timestamp',),
    camera_times_s=('img_timestamp',),
    can_bus=('can_bus',),
    command=('gt_ego_fut_cmd', 'ego_fut_cmd'),
    scene_token=('scene_token',),
)
"""Field of a frame -> its keys in a sample or its metas."""
AXES = dict(
    lidar2img=3,
    intrinsics=3,
    ego_pose=2,
    ego_pose_inv=2,
    timestamp_s=0,
    camera_times_s=1,
    can_bus=1,
    command=1,
)
"""Field of numbers -> its number of axes; leading axes of length 1 are dropped."""


def loaded_frame(data: Mapping[str, Any], needed: Collection[str] = ()) -> Frame:
    """Return a collated sample (batch 1, one augmentation) as a frame; raises DataError if one is missing."""
    for key in ('img', 'img_metas'):
        if key not in data:
            raise DataError(f'the test pipeline does not return {key}; add it to the keys of its last step')
    meta = only(data['img_metas'], 'img_metas')
    fields = {}
    for name, keys in KEYS.items():
        values = [only(data[key], key) for key in keys if key in data]
        values += [meta[key] for key in keys if isinstance(meta, dict) and key in meta]
        if values and not _is_of_pictures(name, values[0]):
            fields[name] = str(values[0]) if name == 'scene_token' else as_array(values[0], AXES[name])
    for name in ('lidar2img', *needed):
        if name not in fields:
            raise DataError(
                f'the test pipeline does not return {" or ".join(KEYS[name])}; add it to the keys or '
                'meta_keys of its last step'
            )
    return camera_frame(only(data['img'], 'img'), fields, meta)


def _is_of_pictures(name: str, values: Any) -> bool:
    return name == 'timestamp_s' and np.asarray(values).size > 1


def dumped_frame(
    tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any], needed: Collection[str] = ()
) -> Frame:
    """Return the frame of a dump; raises DataError if `img`, `lidar2img` or a `needed` field is missing."""
    fields: dict[str, Any] = dict(scene_token=str(manifest.get('scene_token') or ''))
    for name, axes in AXES.items():
        for key in (name, *KEYS[name]):
            if key in tensors and name not in fields:
                fields[name] = as_array(tensors[key], axes)
    check_dumped({**fields, **tensors}, ('img', 'lidar2img', *needed))
    return camera_frame(tensors['img'], fields, dict(sample_idx=manifest.get('frame', '')))


def camera_frame(images: Any, fields: Mapping[str, Any], meta: Mapping[str, Any]) -> Frame:
    """Return a frame of images (N, 3, H, W), maybe with leading axes of length 1."""
    absent = dict(ego_pose=None, timestamp_s=None, scene_token=None)
    fields = {**absent, **fields}
    fields.setdefault('intrinsics', np.tile(np.eye(4), (len(fields['lidar2img']), 1, 1)))
    pictures = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    return Frame(
        images=np.ascontiguousarray(pictures, np.float32).reshape(pictures.shape[-4:]),
        name=str(meta.get('sample_idx', '')),
        image_files=picture_files(meta),
        **fields,
    )


def as_array(value: Any, axes: int) -> Any:
    array = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value, np.float64)
    if not axes:
        return float(array.reshape(-1)[0])
    return np.array(array.reshape(array.shape[array.ndim - axes :]))
