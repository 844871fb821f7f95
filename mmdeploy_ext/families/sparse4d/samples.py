"""Frames from samples of the test loader, the tensors of dumps that make one, results of the test loop."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.core.errors import ConfigError, DataError
from mmdeploy_ext.families.parts import samples
from mmdeploy_ext.families.parts.proof_samples import turned_way
from mmdeploy_ext.families.parts.samples import camera_frame, check_given, only
from mmdeploy_ext.families.sparse4d.runtime.boxes import InstanceBoxes
from mmdeploy_ext.runtime.frames import Frame

KEYS = ('img', 'projection_mat', 'timestamp', 'img_metas')
"""Keys of a sample of the test loader."""
RESIZE, PACKING = 'ResizeCropFlipImage', ('NuScenesSparse4DAdaptor', 'Collect')
"""Steps of the test pipeline: the one that resizes as the data set chooses, and those that only pack."""
GAPS_S = (0.4, 1.9999, 2.0, 2.0001, -3.5, 0.0, -0.5)
"""Seconds from frame to frame in `driven`: around 2 s, the published `max_time_interval`, after which kept
instances no longer come in, no time at all, and back in time by more and by less than that."""
TURN_RAD, WAY_M = 0.5, 1.5
"""How far the car turns to the left, and drives along y of its LiDAR frame, between these frames."""
DUMPED = ('img', 'lidar2img', 'ego_pose', 'timestamp_s')
"""Tensors of a dump from which a frame is read back."""


def camera_steps(steps: list[Mapping[str, Any]], cfg: Any) -> list[Mapping[str, Any]]:
    """Return the steps of a test pipeline as `preprocess.cameras.multiview_rule` reads them.

    Sparse4D's data set chooses resize and crop by its `data_aug_conf`, which becomes an argument of the step.

    Raises:
        ConfigError: the pipeline resizes, and `data.test` has no `data_aug_conf`.
    """
    aug_conf = ((cfg.get('data') or {}).get('test') or {}).get('data_aug_conf')
    translated = []
    for step in steps:
        if step['type'] == RESIZE:
            if not aug_conf:
                raise ConfigError(
                    f'{cfg.filename}: data.test has no data_aug_conf, by which {RESIZE} resizes'
                )
            step = dict(type='ResizeCropFlipRotImage', data_aug_conf=aug_conf, training=False)
        if step['type'] not in PACKING:
            translated.append(step)
    return translated


def frame(data: Mapping[str, Any]) -> Frame:
    """Return one collated sample of the test loader (batch 1) as a frame.

    `data` has the entries `KEYS`, each in lists or containers of mmcv; `T_global` of `img_metas` is the pose,
    LiDAR to global. As Sparse4D's samples have no intrinsics, those of the frame are unit matrices. Samples
    of the published data set have no scene either: its token is '' then.

    Raises:
        DataError: an entry is missing, `T_global` too, or there is more than one sample.
    """
    check_given(data, KEYS)
    images, projection, timestamp, meta = (only(data[key], key) for key in KEYS)
    if not isinstance(meta, dict) or 'T_global' not in meta:
        raise DataError('img_metas has no T_global; add it to the meta_keys of Collect')
    return camera_frame(
        images,
        np.asarray(projection).reshape(-1, 4, 4),
        meta,
        ego_pose=np.asarray(meta['T_global'], np.float64),
        timestamp_s=float(np.asarray(timestamp).reshape(-1)[0]),
        scene_token=str(meta.get('scene_token', '')),
    )


def driven(frame: Frame) -> Iterator[Frame]:
    """Yield the frames after `frame` of a drive with the gaps `GAPS_S`, in which the car turns.

    Images and cameras stay those of `frame`; the inverse of the pose is left to be computed.
    """
    turn, pose = turned_way(TURN_RAD, WAY_M), np.array(frame.ego_pose, np.float64)
    time = frame.timestamp_s
    for gap in GAPS_S:
        pose, time = pose @ turn, time + gap
        yield dataclasses.replace(
            frame, name=f'{gap} s later', ego_pose=pose, ego_pose_inv=None, timestamp_s=time
        )


def result(detections: InstanceBoxes) -> dict[str, Any]:
    """Return detections as one entry of the results of a test loop: `boxes_3d`, `scores_3d`, `labels_3d`.

    `boxes_3d` are `LiDARInstance3DBoxes`, the others tensors, with a row per box; track ids, if there are
    any, are `instance_ids`. `cls_scores` (n,) are the scores before they are multiplied by centerness, in a
    descending order of their own: entry i may be of another box than row i, with a threshold of one that did
    not reach it, unless the repair `class_scores` is on. The published tracking evaluation compares them with
    its threshold.

    The entries are not inside `pts_bbox`, as mmdet3d has them: upstream's data set reads `img_bbox` instead,
    and both data sets take entries that are in neither.
    """
    (entry,) = samples.result(detections).values()
    entry['cls_scores'] = torch.from_numpy(np.ascontiguousarray(detections.class_scores))
    return entry
