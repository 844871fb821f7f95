"""The deployment fork's contract on ONNX Runtime: one graph, global memory, the update left to the caller.

Source: woquyuna/StreamPETR deployV1.0 0e9eefe and deployV1.1 13660a1, tools/test_onnx.py. Here for those who
have such a consumer; the deploy contract is exact on long drives and feeds 72 bytes per frame, not megabytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.runtime.streampetr.boxes import sigmoid, top_rows
from mmdeploy_ext.runtime.streampetr.state import FIELDS, to_global, to_local

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.engines.base import Backend
    from mmdeploy_ext.inputs.cameras import Calibration
    from mmdeploy_ext.runtime.streampetr.state import Moment

FORK_NAMES = {field: field for field in FIELDS} | {'reference_point': 'ref_point'}
"""Our name of a tensor of the memory -> the fork's, after `in_mem_` and `mem_`."""


class ForkContract:
    """The one graph and the memory between its runs; see `DeployContract` for what the methods mean.

    Attributes:
        metadata: of the file.
        image_shape: (N, 3, H, W).
        fed_bytes: fed for the last frame, besides the images.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self.metadata, self.spec = backend, backend.metadata, backend.spec
        self.image_shape = tuple(self.spec.tensor('img').axes)
        self.absolute_time = 'timestamp' in self.spec.input_names
        memory_len = self.spec.tensor('mem_embedding').axes[1]
        self.num_new = self.spec.tensor('in_mem_embedding').axes[1] - memory_len
        self.fed_bytes = 0
        self.calibration_key = b''
        self.rig: dict[str, np.ndarray] = {}
        self.memory = self._empty()

    @property
    def graphs(self) -> dict[str, Backend]:
        """The session, by part of a frame: there is one for all of it."""
        return {'whole graph': self.backend}

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of the memory."""
        return {field: tuple(self.spec.tensor(f'in_mem_{FORK_NAMES[field]}').axes) for field in FIELDS}

    def _empty(self) -> dict[str, np.ndarray]:
        memory = {field: np.zeros(shape, np.float32) for field, shape in self.state_shapes.items()}
        memory['timestamp'] = memory['timestamp'].astype(np.float64)
        return memory

    def run(self, images: np.ndarray, calibration: Calibration, moment: Moment) -> dict[str, np.ndarray]:
        """Run one frame, do what the fork leaves to the user, and keep the memory."""
        key = calibration.lidar2img.tobytes() + calibration.intrinsics.tobytes()
        if key != self.calibration_key:
            self.rig, self.calibration_key = expand_calibration(calibration, self.spec), key
        feeds = self._feeds(images, moment)
        self.fed_bytes = sum(array.nbytes for name, array in feeds.items() if name != 'img')
        outputs = self.backend.infer(feeds)
        used = {field: outputs[f'mem_{FORK_NAMES[field]}'] for field in FIELDS}
        self.memory = post_update(outputs, used, moment.ego_pose, moment.timestamp_s, self.num_new)
        return {name: np.asarray(outputs[name], np.float32) for name in ('all_cls_scores', 'all_bbox_preds')}

    def _feeds(self, images: np.ndarray, moment: Moment) -> dict[str, np.ndarray]:
        memory = self.memory if moment.prev_exists else self._empty()
        time = memory['timestamp']
        if not self.absolute_time:
            time = time + moment.timestamp_s if moment.prev_exists else time
        values = dict(
            self.rig,
            img=images,
            ego_pose=moment.ego_pose[None],
            ego_pose_inv=moment.ego_pose_inv[None],
            prev_exists=np.array([moment.prev_exists]),
            **{f'in_mem_{FORK_NAMES[field]}': memory[field] for field in FIELDS},
        )
        values['in_mem_timestamp'] = time
        if self.absolute_time:
            values['timestamp'] = np.array([moment.timestamp_s])
        return {
            tensor.name: np.ascontiguousarray(values[tensor.name], tensor.dtype)
            for tensor in self.spec.inputs
        }

    def read_state(self, ego_pose: np.ndarray, timestamp_s: float) -> dict[str, np.ndarray]:
        """Return the memory in the LiDAR frame of the last frame, float32."""
        return to_local(self.memory, ego_pose, timestamp_s)

    def write_state(
        self, tensors: Mapping[str, np.ndarray], ego_pose: np.ndarray, timestamp_s: float
    ) -> None:
        """Replace the memory by a local one of the right shapes."""
        self.memory = to_global(tensors, ego_pose, timestamp_s)


def expand_calibration(calibration: Calibration, spec: GraphSpec) -> dict[str, np.ndarray]:
    """Return `img2lidar` per token (or per token and depth bin) and `intrinsic` per token.

    Token t belongs to camera t // (T / N), but carries the focal lengths of camera t mod N: what the
    published weights were trained with.

    Args:
        calibration: of the N cameras.
        spec: of the file; the shapes of both inputs are read from it.
    """
    shape = spec.tensor('img2lidar').axes
    num_cameras, tokens = len(calibration.lidar2img), shape[1]
    inverse = np.linalg.inv(calibration.lidar2img).astype(np.float32)
    per_token = np.repeat(inverse, tokens // num_cameras, axis=0)[None]
    if len(shape) == 5:
        per_token = np.broadcast_to(per_token[:, :, None], shape)
    focal = np.abs(np.diagonal(calibration.intrinsics, axis1=1, axis2=2)[:, :2]) / 1e3
    intrinsic = np.tile(focal, (tokens // num_cameras, 1))[None]
    return dict(img2lidar=np.ascontiguousarray(per_token), intrinsic=intrinsic.astype(np.float32))


def post_update(
    outputs: Mapping[str, np.ndarray],
    memory: Mapping[str, np.ndarray],
    ego_pose: np.ndarray,
    timestamp_s: float,
    num_new: int,
) -> dict[str, np.ndarray]:
    """Put the best rows of a frame before the memory that it used and move all to global coordinates.

    Args:
        outputs: `all_cls_scores`, `all_bbox_preds`, `outs_dec` of the frame.
        memory: that the frame used, in its LiDAR frame, ages in seconds.
        ego_pose: (4, 4), LiDAR to global; used as float32, as the fork does.
        timestamp_s: seconds, absolute.
        num_new: rows to keep of this frame.

    Returns:
        The state for the next frame; `timestamp` float64 is minus the absolute time of origin.
    """
    best = top_rows(sigmoid(outputs['all_cls_scores'][-1, 0]).max(axis=-1), num_new)
    boxes = outputs['all_bbox_preds'][-1, 0][best]
    new = dict(
        embedding=outputs['outs_dec'][0][best],
        reference_point=boxes[:, :3],
        timestamp=np.zeros((num_new, 1)),
        egopose=np.tile(np.eye(4, dtype=np.float32), (num_new, 1, 1)),
        velo=boxes[:, 8:10],
    )
    state = {field: np.concatenate([new[field][None], memory[field]], axis=1) for field in FIELDS}
    pose = np.asarray(ego_pose, np.float32)
    state['reference_point'] = state['reference_point'] @ pose[:3, :3].T + pose[:3, 3]
    state['egopose'] = pose @ state['egopose']
    state['timestamp'] = state['timestamp'].astype(np.float64) - timestamp_s
    return state
