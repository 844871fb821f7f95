"""woquyuna's fork of StreamPETR: one graph, a memory in global coordinates, updated outside.

Glossary: N cameras, T tokens, L decoder layers in the outputs (all, or 1: the last one, by `--layers`), Q
queries, K classes.

Source: woquyuna/StreamPETR deployV1.0 0e9eefe and deployV1.1 13660a1, tools/test_onnx.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.streampetr.memory import FIELDS, to_global
from mm2onnx_driving.streampetr.runtime import StreamPetrOnnx, motion_since
from mmdeploy_ext.base.errors import EngineError
from mmdeploy_ext.runtime.detections import top_rows
from mmdeploy_ext.runtime.geometry import exact_sigmoid, invert_pose

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.frames import Frame, StreamState
    from mmdeploy_ext.spec.tensors import GraphSpec

(FORK,) = FILES = ('fork',)
"""Name of the graph."""
FORK_NAMES = {field: field for field in FIELDS} | {'reference_point': 'ref_point'}
"""Our name of a tensor of the memory -> the fork's, after `in_mem_` and `mem_`."""


class ForkOnnx(StreamPetrOnnx):
    """The fork's file; raises EngineError on OpenVINO."""

    files, parts = FILES, ('whole graph',)

    def __init__(self, paths: Paths, *, engine: str = 'OnnxRuntimeBackend', **options: Any) -> None:
        if engine == 'OpenVinoBackend':
            # OpenVINO 2026.4 drops an input that the graph needs: wrong results from the second frame on
            raise EngineError(
                f'{paths}: OpenVINO computes wrong results for the fork contract; export with --contract '
                'deploy'
            )
        super().__init__(paths, engine=engine, **options)

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        motion_since(memory, frame)  # refuses a frame before the last one
        outputs = self.graphs[FORK].run(self.inputs(frame, memory))
        used = {field: outputs[f'mem_{name}'] for field, name in FORK_NAMES.items()}
        after = post_update(outputs, used, self.num_new)
        results = {name: np.float32(outputs[name]) for name in ('all_cls_scores', 'all_bbox_preds')}
        return results | {f'post_memory_{field}': rows for field, rows in after.items()}

    def inputs(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        spec, pose = self.graphs[FORK].spec, frame.ego_pose
        rows = {field: np.zeros(shape, np.float32) for field, shape in self.memory_shapes().items()}
        if memory is not None:
            origin = self.origin(memory.ego_pose)
            pose, last_pose = seen_from(origin, pose), seen_from(origin, memory.ego_pose)
            rows = to_global(memory.tensors, last_pose, memory.timestamp_s)
            # 1.0 takes minus the absolute time at which each row was made, 1.1 its age
            rows['timestamp'] += 0.0 if 'timestamp' in spec.input_names else frame.timestamp_s
        values = dict(
            expand_calibration(frame, spec),
            img=frame.images,
            ego_pose=pose[None],
            ego_pose_inv=invert_pose(pose)[None],
            prev_exists=np.array([memory is not None]),
            timestamp=np.array([frame.timestamp_s]),
            **{f'in_mem_{name}': rows[field] for field, name in FORK_NAMES.items()},
        )
        return {
            tensor.name: np.ascontiguousarray(values[tensor.name], tensor.dtype) for tensor in spec.inputs
        }

    @staticmethod
    def origin(last_pose: np.ndarray) -> np.ndarray:
        """Return the origin (3,) in metres of the global frame."""
        return np.round(last_pose[:3, 3])

    @property
    def num_new(self) -> int:
        spec = self.graphs[FORK].spec
        return spec.tensor('in_mem_embedding').axes[1] - spec.tensor('mem_embedding').axes[1]

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        spec = self.graphs[FORK].spec
        return {field: tuple(spec.tensor(f'in_mem_{name}').axes) for field, name in FORK_NAMES.items()}


def seen_from(origin: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Return a pose (4, 4) relative to `origin` (3,) in metres."""
    moved = pose.copy()
    moved[:3, 3] -= origin
    return moved


def expand_calibration(frame: Frame, spec: GraphSpec) -> dict[str, np.ndarray]:
    """Return `img2lidar` (1, T, [depth bins,] 4, 4) and `intrinsic` (1, T, 2), float32.

    They map pixels times depth to the LiDAR frame, and are |fx|, |fy| in 1000 pixels.
    """
    shape = spec.tensor('img2lidar').axes
    num_cameras, tokens = len(frame.lidar2img), shape[1]
    inverse = np.linalg.inv(frame.lidar2img).astype(np.float32)
    per_token = np.repeat(inverse, tokens // num_cameras, axis=0)[None]
    if len(shape) == 5:
        per_token = np.broadcast_to(per_token[:, :, None], shape)
    focal = np.abs(np.diagonal(frame.intrinsics, axis1=1, axis2=2)[:, :2]) / 1e3
    intrinsic = np.tile(focal, (tokens // num_cameras, 1))[None]
    return dict(img2lidar=np.ascontiguousarray(per_token), intrinsic=intrinsic.astype(np.float32))


def post_update(outputs: Arrays, memory: Arrays, num_new: int) -> dict[str, np.ndarray]:
    """Return the memory after a frame: its `num_new` best rows before the used memory, float32.

    All in the frame's LiDAR frame, but velocities in their row's original frame; ages in seconds.

    Args:
        outputs: name -> output; `outs_dec` (1, Q, channels) is the last layer.
        memory: field of `FIELDS` -> the used memory (1, rows, ...), from the `mem_` outputs.
        num_new: number of new rows, by best scores.
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
