"""The contract of woquyuna's fork of StreamPETR: one graph, a memory in global coordinates, updated outside.

Glossary: N cameras, H, W network input in pixels, T tokens, L decoder layers in the outputs (all, or 1: the
last one, by `--layers`), Q queries, K classes.

Source: woquyuna/StreamPETR deployV1.0 0e9eefe and deployV1.1 13660a1, tools/test_onnx.py. It is for
consumers of such files; the deploy contract feeds 72 bytes per frame, its motion, not megabytes.

The contract has poses and points in a global frame, in float32. Two kilometres from its origin float32 has
steps of 0.12 mm, and the rotation between two poses turns an error of that size into millimetres. Any
coordinate frame in which the world does not move can be the global one; here its origin is the position of
the LiDAR in the last frame, rounded to metres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.parts.runtime.scores import top_rows
from mmdeploy_ext.families.streampetr.runtime.state import FIELDS, to_global
from mmdeploy_ext.runtime.geometry import exact_sigmoid, invert_pose

if TYPE_CHECKING:
    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.engines.base import Backend
    from mmdeploy_ext.families.streampetr.runtime.state import FrameMotion
    from mmdeploy_ext.preprocess.cameras import Calibration
    from mmdeploy_ext.runtime.detections import Arrays

FORK_NAMES = {field: field for field in FIELDS} | {'reference_point': 'ref_point'}
"""Our name of a tensor of the memory -> the fork's, after `in_mem_` and `mem_`."""


class ForkContract:
    """The one graph and the memory between its runs; the methods are those of `DeployContract`.

    Attributes:
        backend: the opened file.
        metadata, spec: metadata and contract of that file.
        image_shape, calibration_key, graphs, state_shapes: as those of `DeployContract`.
        fed_bytes: number of bytes of all inputs of the last frame, besides the images.
        absolute_time: whether the graph takes minus the absolute time at which each row of the memory was
            made (version 1.0, float64 as the time itself), and not its age (1.1).
        num_new: rows that a frame adds to the memory; the graph leaves out as many of the oldest.
        rig: the inputs `img2lidar` and `intrinsic`, computed from the last calibration.
        memory: the memory after the last frame, in its LiDAR frame, ages in seconds; float32.
        last: pose (4, 4) float64 and time in seconds of the last frame.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self.metadata, self.spec = backend, backend.metadata, backend.spec
        self.image_shape = tuple(self.spec.tensor('img').axes)
        self.absolute_time = 'timestamp' in self.spec.input_names
        after, before = (self.spec.tensor(f'{name}_embedding').axes[1] for name in ('in_mem', 'mem'))
        self.num_new = after - before
        self.fed_bytes = 0
        self.calibration_key = b''
        self.rig: dict[str, np.ndarray] = {}
        self.memory: dict[str, np.ndarray] = {}
        self.last = np.eye(4), 0.0
        self.graphs = {'whole graph': backend}
        self.state_shapes = {
            field: tuple(self.spec.tensor(f'in_mem_{name}').axes) for field, name in FORK_NAMES.items()
        }

    def run(self, images: np.ndarray, calibration: Calibration, moment: FrameMotion) -> dict[str, np.ndarray]:
        """Run one frame, and make the memory after it, which the fork leaves to its user.

        Args:
            images: (N, 3, H, W), normalised; they get the dtype of the graph.
            calibration: `lidar2img` and `intrinsics` (N, 4, 4) of the network input.
            moment: pose and time of the frame; if `prev_exists` is False the memory is ignored. It is False
                in the first frame, unless `write_state` has set a memory.

        Returns:
            `all_cls_scores` (L, 1, Q, K), logits, and `all_bbox_preds` (L, 1, Q, 10), float32: x, y, z, then
            logarithms of the sizes, sine and cosine of the heading, and velocities x, y, as `decode` in
            `model.py` takes them.
        """
        key = calibration.lidar2img.tobytes() + calibration.intrinsics.tobytes()
        if key != self.calibration_key:
            self.rig, self.calibration_key = expand_calibration(calibration, self.spec), key
        feeds = self._feeds(images, moment)
        self.fed_bytes = sum(array.nbytes for name, array in feeds.items() if name != 'img')
        outputs = self.backend.infer(feeds)
        used = {field: outputs[f'mem_{FORK_NAMES[field]}'] for field in FIELDS}
        self.memory = post_update(outputs, used, self.num_new)
        self.last = moment.ego_pose, moment.timestamp_s
        return {name: np.asarray(outputs[name], np.float32) for name in ('all_cls_scores', 'all_bbox_preds')}

    @staticmethod
    def origin(last_pose: np.ndarray) -> np.ndarray:
        """Return the origin (3,) in metres of the global frame of the poses and points that the graph gets.

        `last_pose` (4, 4) is that of the last frame, LiDAR to the global frame of the data set. In a frame
        without a memory the pose stays as it is: it moves nothing else.
        """
        return np.round(last_pose[:3, 3])

    def _feeds(self, images: np.ndarray, moment: FrameMotion) -> dict[str, np.ndarray]:
        (last_pose, last_time), pose = self.last, moment.ego_pose
        if moment.prev_exists:
            origin = self.origin(last_pose)
            last_pose, pose = seen_from(origin, last_pose), seen_from(origin, pose)
            memory = to_global(self.memory, last_pose, last_time)
            memory['timestamp'] = memory['timestamp'] + (0.0 if self.absolute_time else moment.timestamp_s)
        else:
            memory = {field: np.zeros(shape, np.float32) for field, shape in self.state_shapes.items()}
        values = dict(
            self.rig,
            img=images,
            ego_pose=pose[None],
            ego_pose_inv=invert_pose(pose)[None],
            prev_exists=np.array([moment.prev_exists]),
            timestamp=np.array([moment.timestamp_s]),
            **{f'in_mem_{FORK_NAMES[field]}': memory[field] for field in FIELDS},
        )
        return {
            tensor.name: np.ascontiguousarray(values[tensor.name], tensor.dtype)
            for tensor in self.spec.inputs
        }

    def read_state(self, ego_pose: np.ndarray, timestamp_s: float) -> dict[str, np.ndarray]:
        """Return a copy of the memory after the last frame: field -> (1, rows, ...) float32.

        It is in the LiDAR frame of that frame, but for velocities, which stay in that of their row's origin,
        and empty before the first one. `ego_pose` and `timestamp_s` are pose and time of that frame, which
        other contracts need.
        """
        return {field: values.copy() for field, values in self.memory.items()}

    def write_state(self, tensors: Arrays, ego_pose: np.ndarray, timestamp_s: float) -> None:
        """Replace the memory by one as `read_state` returns it, of a last frame of this pose and time.

        It has to have all of `FIELDS`: before the first frame there is none to keep.
        """
        self.memory = {field: np.array(tensors[field], np.float32) for field in FIELDS}
        self.last = ego_pose, timestamp_s


def seen_from(origin: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Return a (4, 4) pose in a global frame that was moved to `origin` (3,) in metres."""
    moved = pose.copy()
    moved[:3, 3] -= origin
    return moved


def expand_calibration(calibration: Calibration, spec: GraphSpec) -> dict[str, np.ndarray]:
    """Return `img2lidar` (1, T, 4, 4), or (1, T, depth bins, 4, 4), and `intrinsic` (1, T, 2), float32.

    These are from pixels times depth to the LiDAR frame, and |fx| and |fy| in 1000 pixels. T is the number of
    tokens, the cells of all feature maps; `calibration` has the matrices of the cameras. Token t belongs to
    camera t // (T / N), but carries the focal lengths of camera t mod N: what the published weights were
    trained with. The shapes of both inputs are those of the spec.
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


def post_update(outputs: Arrays, memory: Arrays, num_new: int) -> dict[str, np.ndarray]:
    """Return the memory after a frame: its `num_new` best rows before the memory that it used, float32.

    Both are in the frame's LiDAR frame, but for velocities, which stay in that of their row's origin; ages
    are in seconds.

    Args:
        outputs: name -> output of the graph; of `outs_dec` (1, Q, channels) there is the last layer alone.
        memory: field of `FIELDS` -> the memory that the frame used (1, rows, ...), the `mem_` outputs.
        num_new: number of rows of the frame, those of its queries with the best scores.
    """
    best = top_rows(exact_sigmoid(outputs['all_cls_scores'][-1, 0]).max(axis=-1), num_new)
    boxes = outputs['all_bbox_preds'][-1, 0][best]
    new = dict(
        embedding=outputs['outs_dec'][0][best],
        reference_point=boxes[:, :3],
        timestamp=np.zeros((num_new, 1), np.float32),
        egopose=np.tile(np.eye(4, dtype=np.float32), (num_new, 1, 1)),
        velo=boxes[:, 8:10],
    )
    rows = {field: np.concatenate([new[field][None], memory[field]], axis=1) for field in FIELDS}
    return {field: values.astype(np.float32) for field, values in rows.items()}
