"""The dump of a frame with the deployment fork's names.

Source: woquyuna/StreamPETR deployV1.0 0e9eefe, tools/test_pth.py and its documentation.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from mm2onnx_driving.streampetr.model.live import steps_of
from mmdeploy_ext.base.errors import DataError

DUMP_SUFFIXES = {'out_': '_pth', 'post_mem_': '_pth', 'all_': '_pth'}
"""Prefix of a tensor's name -> suffix of the fork's file name."""
INPUTS = ('img', 'img2lidar', 'intrinsic', 'timestamp', 'ego_pose', 'ego_pose_inv', 'prev_exists')
CALIBRATION = ('lidar2img', 'intrinsics')
"""Matrices per camera, from which a frame is read back."""
MEMORY = ('embedding', 'timestamp', 'egopose', 'ref_point', 'velo')
DUMP_NAMES = (
    *INPUTS, *CALIBRATION, 'coords', 'query_pos', 'tgt', *(f'out_mem_{name}' for name in MEMORY),
    'out_outs_dec', *(f'post_mem_{name}' for name in MEMORY), 'all_cls_scores', 'all_bbox_preds',
)  # fmt: skip
"""Tensors that a dump has."""


def dump_tensors(model: nn.Module, taps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the dump of one frame: taps, and constants of the weights."""
    with torch.no_grad():
        tgt, query_pos, _ = steps_of(model.pts_bbox_head).learned_queries()
    tensors = dict(tgt=tgt, query_pos=query_pos) | dict(taps)
    missing = [name for name in DUMP_NAMES if name not in tensors]
    if missing:
        raise DataError(f'dump: the model returned no {", ".join(missing)}; dump with the PyTorch model')
    arrays = {name: tensors[name].detach().cpu().numpy() for name in DUMP_NAMES}
    # the fork's images have no batch axis, and its times in the memory are float64
    arrays['img'] = arrays['img'].reshape(arrays['img'].shape[-4:])
    for name in ('timestamp', 'out_mem_timestamp', 'post_mem_timestamp'):
        arrays[name] = arrays[name].astype(np.float64)
    return arrays
