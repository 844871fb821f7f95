"""Values of test loader samples and dumps; detections from and to results of mmdet3d."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.parallel import DataContainer
from mmdet3d.core.bbox import LiDARInstance3DBoxes

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.families.common.lidar_models import LidarMethods
from mmdeploy_ext.families.common.options import CONVENTIONS
from mmdeploy_ext.families.sequence_data import SequenceData
from mmdeploy_ext.families.synthetic import info_files
from mmdeploy_ext.families.synthetic.moments import generated_sweeps
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.preprocess.points import point_rule
from mmdeploy_ext.runtime.sweeps import Sweeps
from mmdeploy_ext.spec.preparation import VoxelRule


def check_given(data: Mapping[str, Any], keys: Iterable[str]) -> None:
    if missing := [key for key in keys if key not in data]:
        raise DataError(
            f'the test pipeline does not return {", ".join(missing)}; add them to the keys of Collect3D'
        )


def check_dumped(tensors: Mapping[str, np.ndarray], names: Iterable[str]) -> None:
    if missing := [name for name in names if name not in tensors]:
        raise DataError(
            f'the dump has no {", ".join(missing)}; dump with tensors=None, or list them in tensors'
        )


def only(value: Any, key: str) -> Any:
    """Return the only value inside lists and containers of mmcv; a list of arrays is a value."""
    while True:
        if isinstance(value, DataContainer):
            value = value.data
        elif isinstance(value, list | tuple) and not isinstance(value[0] if value else None, np.ndarray):
            if len(value) != 1:
                raise DataError(f'{key}: got {len(value)} samples or augmentations, expected one')
            value = value[0]
        else:
            return value


def picture_files(meta: Mapping[str, Any]) -> tuple[str, ...]:
    files = meta.get('filename') or ()
    return (files,) if isinstance(files, str) else tuple(map(str, files))


def detections(result: Mapping[str, Any]) -> Detections3D:
    """Return mmdet3d's result of one sample, best first; missing velocities are zero."""
    boxes = result['boxes_3d'].tensor.numpy()
    scores, labels = result['scores_3d'].numpy(), result['labels_3d'].numpy()
    boxes = np.pad(boxes, ((0, 0), (0, max(9 - boxes.shape[1], 0))))
    order = np.argsort(-scores, kind='stable')
    return Detections3D(boxes[order], scores[order], labels[order].astype(np.int64))


def result(detections: Detections3D) -> dict[str, Any]:
    boxes = torch.from_numpy(np.ascontiguousarray(detections.boxes, np.float32))
    scores, labels = (
        torch.from_numpy(np.ascontiguousarray(rows)) for rows in (detections.scores, detections.labels)
    )
    rows = dict(boxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), scores_3d=scores, labels_3d=labels)
    if detections.ids is not None:
        rows['instance_ids'] = torch.from_numpy(np.ascontiguousarray(detections.ids))
    return dict(pts_bbox=rows)


class ClockwiseBoxes(LiDARInstance3DBoxes):
    """Boxes in the columns of 0.x: `bev`, which heads give to NMS, turns them clockwise."""

    @property
    def bev(self) -> torch.Tensor:
        return self.tensor[:, [0, 1, 3, 4, 6]] * self.tensor.new_tensor([1, 1, 1, 1, -1])


BOX_TYPES = dict(zip(CONVENTIONS, (ClockwiseBoxes, LiDARInstance3DBoxes), strict=True))
"""Box convention -> `box_type_3d` of metas."""


def detections_in_1x(result: Mapping[str, Any], convention: str) -> Detections3D:
    """Return `detections` with boxes of mmdet3d 1.x."""
    old = detections(result)
    if convention != CONVENTIONS[0]:
        return old
    boxes = old.boxes[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]]
    yaw = -boxes[:, 6] - np.pi / 2
    boxes[:, 6] = yaw - 2 * np.pi * np.round(yaw / (2 * np.pi))
    return dataclasses.replace(old, boxes=boxes)


class SweepData(SequenceData):
    """Sweeps of points alone."""

    def frame(self, data: Mapping[str, Any]) -> Sweep:
        check_given(data, ('points', 'img_metas'))
        points, meta = only(data['points'], 'points'), only(data['img_metas'], 'img_metas')
        return Sweep(
            points=np.ascontiguousarray(points.cpu().numpy(), np.float32),
            name=str(meta.get('sample_idx', '')),
        )

    def moments(
        self, cfg: Any, rule: VoxelRule, infos: Path, root: str | Path | None = None
    ) -> Iterator[Sweep]:
        sweeps = Sweeps(infos, lambda points: (points, points), point_rule(cfg, rule.in_channels), root)
        for info in sweeps.items:
            yield Sweep(sweeps.points(info), str(info.get('token', '')))

    def dumped_frame(self, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Sweep:
        check_dumped(tensors, ['points'])
        return Sweep(np.ascontiguousarray(tensors['points']), str(manifest.get('frame', '')))

    def generated_dataset(self, folder: Path, cfg: Any, rule: VoxelRule) -> dict[str, Any]:
        return info_files.generated_dataset(folder, cfg, dict(type='NuScenesDataset'), voxels=rule)

    def generated_sweeps(self, rule: VoxelRule, count: int) -> Iterable[Sweep]:
        return generated_sweeps(rule, count)


class SweepMethods(LidarMethods):
    """Methods of families of points alone; derive from this class before `SequenceFamily`."""

    files, samples, data = ('backbone', 'head'), 'sweeps', SweepData()
    result = staticmethod(result)
