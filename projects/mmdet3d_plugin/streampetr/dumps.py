"""What dump mode writes for a frame, under the deployment fork's names, and how such a frame is read back.

Source of the names: woquyuna/StreamPETR deployV1.0 0e9eefe, tools/test_pth.py and its documentation.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.runtime.frames import Frame

SUFFIXES = {'out_': '_pth', 'post_mem_': '_pth', 'all_': '_pth'}
"""Prefix of a name -> what the fork's file names end in."""
INPUTS = ('img', 'img2lidar', 'intrinsic', 'timestamp', 'ego_pose', 'ego_pose_inv', 'prev_exists')
CALIBRATION = ('lidar2img', 'intrinsics')
"""Per camera, beside the fork's tensors per token: what a frame is read back from."""
MEMORY = ('embedding', 'timestamp', 'egopose', 'ref_point', 'velo')
NAMES = (
    *INPUTS,
    *CALIBRATION,
    'coords',
    'query_pos',
    'tgt',
    *(f'out_mem_{name}' for name in MEMORY),
    'out_outs_dec',
    *(f'post_mem_{name}' for name in MEMORY),
    'all_cls_scores',
    'all_bbox_preds',
)


def tensors(model: nn.Module, taps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the tensors of one frame: name -> array.

    Args:
        model: the detector, for the constants of its weights.
        taps: what `taps.collect_taps` found while the reference ran the frame.

    Raises:
        DataError: a tap is missing.
    """
    found = {**_constants(model), **taps}
    missing = [name for name in NAMES if name not in found]
    if missing:
        raise DataError(f'dump: the model gave no {", ".join(missing)}; dump with the PyTorch model')
    arrays = {name: found[name].detach().cpu().numpy() for name in NAMES}
    # the fork's images have no batch axis, and its times in the memory are float64
    arrays['img'] = arrays['img'].reshape(arrays['img'].shape[-4:])
    for name in ('timestamp', 'out_mem_timestamp', 'post_mem_timestamp'):
        arrays[name] = arrays[name].astype(np.float64)
    return arrays


def _constants(model: nn.Module) -> dict[str, torch.Tensor]:
    import torch

    with torch.no_grad():
        tgt, query_pos, _ = model.pts_bbox_head.learned_queries()
    return dict(tgt=tgt, query_pos=query_pos)


def frame(tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Frame:
    """Return a dumped frame as it was fed.

    Raises:
        DataError: the dump was cut down to fewer tensors than a frame needs.
    """
    needed = ('img', *CALIBRATION, 'ego_pose', 'ego_pose_inv', 'timestamp')
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise DataError(f'the dump has no {", ".join(missing)}; dump with tensors=None, or name them too')
    return Frame(
        images=np.ascontiguousarray(tensors['img']),
        lidar2img=tensors['lidar2img'][0].astype(np.float64),
        intrinsics=tensors['intrinsics'][0].astype(np.float64),
        ego_pose=tensors['ego_pose'][0].astype(np.float64),
        timestamp_s=float(tensors['timestamp'].reshape(-1)[0]),
        scene_token=str(manifest.get('scene_token', '')),
        name=str(manifest.get('frame', '')),
        ego_pose_inv=tensors['ego_pose_inv'][0].astype(np.float64),
    )
