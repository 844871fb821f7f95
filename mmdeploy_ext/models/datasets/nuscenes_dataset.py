"""nuScenes as a stream of multi-camera key frames, in scenes that keep their order.

Glossary: T frames of a training sample, N cameras.
"""

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.parallel import DataContainer
from mmdet.datasets import DATASETS
from mmdet3d.datasets import NuScenesDataset
from pyquaternion import Quaternion

from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.models.catalogue import registered_if_named

LIST_KEYS = ('gt_bboxes_3d', 'gt_labels_3d', 'gt_bboxes', 'gt_labels', 'centers2d', 'depths')
"""Annotations, which a training sample has as lists of T entries, not stacked."""
CAMERA_KEYS = ('img_timestamp', 'img_filename', 'lidar2img', 'intrinsics', 'extrinsics')
"""Keys of the result of `camera_inputs`."""
INFO_KEYS_2D = dict(bboxes='bboxes2d', labels='labels2d') | {
    key: key for key in ('centers2d', 'depths', 'bboxes_ignore')
}
"""Key of `ann_info` -> key of an info."""


@registered_if_named(DATASETS)
class CustomNuScenesDataset(NuScenesDataset):
    """mmdet3d's nuScenes data set, plus cameras, poses, 2D boxes and sequences.

    Infos are those of StreamPETR's `*2d_temporal_infos_*.pkl`, sorted by time.

    Args:
        collect_keys: keys of a frame that training stacks to (T, ...); if `img_metas` is one of them, it
            becomes a list of T, and otherwise that of the last frame stays.
        seq_mode: streaming training: a sample is one frame, and `flag` groups the frames of one sequence.
        seq_split_num: into at most how many sequences a scene is cut, or 'all' for one frame each.
        num_frame_losses: how many of the last frames must have boxes, where empty ones are filtered.
        queue_length: T, frames per training sample; 1 in sequence mode.
        random_length: frames that are dropped at random from the T - 1 + random_length before the last.
        kwargs: of mmdet3d's `NuScenesDataset`.

    Source: exiawsh/StreamPETR 95f6470, datasets/nuscenes_dataset.py. Differs in: a sequence begins where the
    scene token changes (there: where a frame has no sweeps, which is the same on nuScenes).
    """

    def __init__(
        self,
        collect_keys: Sequence[str],
        seq_mode: bool = False,
        seq_split_num: int | str = 1,
        num_frame_losses: int = 1,
        queue_length: int = 8,
        random_length: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.collect_keys = list(collect_keys)
        self.seq_mode = seq_mode
        self.queue_length = 1 if seq_mode else queue_length
        self.random_length = 0 if seq_mode else random_length
        self.num_frame_losses = 1 if seq_mode else num_frame_losses
        if seq_mode:
            tokens = [info['scene_token'] for info in self.data_infos]
            self.flag = sequence_flags(tokens, seq_split_num)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return the dict that the pipeline starts from.

        Returns:
            `ego_pose`, `ego_pose_inv` (4, 4) float32: LiDAR to global and back; `timestamp` float64 s;
            `sample_idx`, `scene_token`, `frame_idx`, `prev_idx`, `next_idx`, `pts_filename`, `sweeps`;
            per camera, in the order of the info: `img_filename`, `img_timestamp` (s), `intrinsics` (4, 4)
            float64, `extrinsics` (4, 4) float32 LiDAR to camera, `lidar2img` (4, 4) float64, to pixels of the
            pictures as they are taken. In training also `prev_exists` (in sequence mode the frame before
            belongs to the same sequence; otherwise `prepare_train_data` decides) and `ann_info`.

        Raises:
            DataError: no camera, or a pose or calibration that is missing, not finite or singular.
        """
        info = self.data_infos[index]
        name = f'{self.ann_file}: sample {info["token"]}'
        ego_pose = lidar_to_global(info, name)
        data = dict(
            sample_idx=info['token'],
            pts_filename=info['lidar_path'],
            sweeps=info['sweeps'],
            ego_pose=ego_pose,
            ego_pose_inv=rigid_inverse(ego_pose),
            prev_idx=info['prev'],
            next_idx=info['next'],
            scene_token=info['scene_token'],
            frame_idx=info['frame_idx'],
            timestamp=info['timestamp'] / 1e6,
        )
        if self.modality['use_camera']:
            data.update(camera_inputs(info.get('cams') or {}, name))
        if not self.test_mode:
            data['prev_exists'] = index > 0 and bool(self.flag[index - 1] == self.flag[index])
            annotations = {key: info[info_key] for key, info_key in INFO_KEYS_2D.items()}
            data['ann_info'] = {**self.get_ann_info(index), **annotations}
        return data

    def prepare_train_data(self, index: int) -> dict[str, Any] | None:
        """Run the pipeline on T frames up to `index`; None if they are filtered as empty.

        Frame 0 of the data set stands for those before it; frames may be of the scene before. The last
        frame's dict is returned, with `collect_keys` stacked to (T, ...), and `LIST_KEYS`, and `img_metas`
        among the former, as lists of T. With `filter_empty_gt` a sample is dropped if one of its last
        `num_frame_losses` frames has no box.
        """
        queue, scene = [], None
        # queue_length - 1 of the frames before `index`, in order, and `index` itself
        before = range(index - self.queue_length - self.random_length + 1, index)
        previous = sorted(random.sample(before, self.queue_length - 1))
        for i in (max(0, frame) for frame in (*previous, index)):
            data = self.get_data_info(i)
            if not self.seq_mode:
                data['prev_exists'] = data['scene_token'] == scene
                scene = data['scene_token']
            self.pre_pipeline(data)
            queue.append(self.pipeline(data))
        frames_with_losses = queue[-self.num_frame_losses :]
        if self.filter_empty_gt and not all(has_objects(frame) for frame in frames_with_losses):
            return None
        return self._stack(queue)

    def _stack(self, queue: list[dict[str, Any]]) -> dict[str, Any]:
        result = queue[-1]
        for key in (*self.collect_keys, *(key for key in LIST_KEYS if key in result)):
            values = [frame[key].data for frame in queue]
            result[key] = (
                DataContainer(values, cpu_only=key in ('img_metas', 'gt_bboxes_3d'))
                if key in ('img_metas', *LIST_KEYS)
                else DataContainer(torch.stack(values), stack=True, pad_dims=None)
            )
        return result


@registered_if_named(DATASETS)
class FusionNuScenesDataset(NuScenesDataset):
    """mmdet3d's nuScenes data set, plus the matrices that BEVFusion takes.

    Infos are those of mmdet3d's `create_data.py`. Source: mit-han-lab/bevfusion db75150,
    mmdet3d/datasets/nuscenes_dataset.py:150-218.
    """

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return the dict that the pipeline starts from: mmdet3d's entries, and the matrices.

        Cameras have (N, 4, 4) float32 in the order of the info: `camera_intrinsics`, `camera2lidar`,
        `lidar2image` and `img_aug_matrix` (unit matrices); `lidar_aug_matrix` is (4, 4).

        Raises:
            DataError: no camera, or a calibration that is missing, not finite or singular.
        """
        data, info = super().get_data_info(index), self.data_infos[index]
        cameras = camera_inputs(info.get('cams') or {}, f'{self.ann_file}: sample {info["token"]}')
        count = len(cameras['intrinsics'])
        poses = [np.linalg.inv(matrix.astype(np.float64)) for matrix in cameras['extrinsics']]
        data.update(
            img_filename=cameras['img_filename'],
            camera_intrinsics=np.float32(cameras['intrinsics']),
            camera2lidar=np.float32(poses),
            lidar2image=np.float32(cameras['lidar2img']),
            img_aug_matrix=np.tile(np.eye(4, dtype=np.float32), (count, 1, 1)),
            lidar_aug_matrix=np.eye(4, dtype=np.float32),
        )
        return data


def has_objects(frame: dict[str, Any] | None) -> bool:
    """Return whether a frame behind the pipeline, None if that dropped it, has a labelled box."""
    return frame is not None and bool((frame['gt_labels_3d'].data != -1).any())


def sequence_flags(scene_tokens: Sequence[str], split: int | str = 1) -> np.ndarray:
    """Number the sequences: every frame's sequence, (frames,) int64, ascending.

    The scene tokens are those of all frames in order of time; a change begins a new sequence. A scene is
    split into sequences of ceil(frames / split) frames, the last one may be shorter; 'all': one per frame.
    """
    if split == 'all':
        return np.arange(len(scene_tokens), dtype=np.int64)
    flags: list[int] = []
    for length in scene_lengths(scene_tokens):
        part = math.ceil(length / int(split))
        first = flags[-1] + 1 if flags else 0
        flags += [first + i // part for i in range(length)]
    return np.array(flags, dtype=np.int64)


def scene_lengths(scene_tokens: Sequence[str]) -> list[int]:
    """Return the number of frames of each run of equal scene tokens."""
    return [len(list(run)) for _, run in itertools.groupby(scene_tokens)]


def lidar_to_global(info: dict[str, Any], sample: str) -> np.ndarray:
    """Return ego-to-global @ LiDAR-to-ego, (4, 4) float32; `sample` names the info in messages.

    For each of these two an info has a quaternion, its real part first, and a translation in metres.

    Raises:
        DataError: of `read_calibration`.
    """

    def matrix(name: str) -> np.ndarray:
        turn = Quaternion(read_calibration(info, f'{name}_rotation', sample, (4,))).rotation_matrix
        return rigid_matrix(turn, read_calibration(info, f'{name}_translation', sample, (3,)))

    return matrix('ego2global') @ matrix('lidar2ego')


def camera_inputs(cameras: dict[str, dict[str, Any]], sample: str) -> dict[str, list[Any]]:
    """Return lists of file names, time stamps (s) and matrices of all cameras, by `CAMERA_KEYS`.

    They are those of `CustomNuScenesDataset.get_data_info`. `cameras` is the entry `cams` of an info, by name
    of camera; `sample` names the info in messages.

    Raises:
        DataError: there is no camera, or a calibration is missing, not finite or singular.
    """
    if not cameras:
        raise DataError(f'{sample}: got no camera in `cams`, expected at least one')
    rows = []
    for name, camera in cameras.items():
        title = f'{sample}, {name}'
        turn = read_calibration(camera, 'sensor2lidar_rotation', title, (3, 3))
        pose = rigid_matrix(turn, read_calibration(camera, 'sensor2lidar_translation', title, (3,)))
        extrinsic, intrinsic = rigid_inverse(pose), np.eye(4)
        intrinsic[:3, :3] = read_calibration(camera, 'cam_intrinsic', title, (3, 3))
        time_s = camera['timestamp'] / 1e6
        rows.append((time_s, camera['data_path'], intrinsic @ extrinsic, intrinsic, extrinsic))
    return dict(zip(CAMERA_KEYS, map(list, zip(*rows, strict=True)), strict=True))


def rigid_matrix(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Return the float32 4x4 matrix [R t; 0 1] of a rotation (3, 3) and a translation (3,) in metres."""
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def rigid_inverse(matrix: np.ndarray) -> np.ndarray:
    """Return [R^T, -R^T t; 0 1] of a rigid float32 (4, 4), computed in float32."""
    rotation_t = matrix[:3, :3].T
    return rigid_matrix(rotation_t, -(rotation_t @ matrix[:3, 3]))


def read_calibration(record: dict[str, Any], key: str, title: str, *shapes: tuple[int, ...]) -> np.ndarray:
    """Return a matrix (3, 3), a quaternion (4,) or a translation (3,) of an info or of its camera; float64.

    Args:
        record: the info or camera.
        key: name of the entry.
        title: name of the record in messages.
        shapes: the shapes that the entry may have.

    Raises:
        DataError: the entry is missing, not finite, of another shape, or a singular matrix or quaternion.
    """
    if key not in record:
        raise DataError(f'{title}: has no {key}; make the info file again with {tool("infos")}')
    value = np.asarray(record[key], dtype=np.float64)
    if value.shape not in shapes or not np.isfinite(value).all():
        sizes = ' or '.join(' x '.join(map(str, shape)) for shape in shapes)
        raise DataError(f'{title}: {key}: got {value.tolist()}, expected {sizes} finite numbers')
    is_singular = abs(np.linalg.det(value)) < 1e-9 if value.ndim == 2 else len(value) == 4 and not value.any()
    if is_singular:
        raise DataError(f'{title}: {key} is singular: {value.tolist()}')
    return value
