"""Samples of the test loader as frames, frames of infos, drives for proofs, and the dump of a frame."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.core.errors import ConfigError, DataError
from mmdeploy_ext.families.parts.proof_samples import turned_way
from mmdeploy_ext.families.parts.samples import camera_frame, check_given, only
from mmdeploy_ext.families.parts.stream_samples import stream_frame
from mmdeploy_ext.runtime.frames import Frame

OF_CAMERAS = 'images', 'lidar2img', 'intrinsics', 'image_files'
"""What a frame has of each camera."""
SWEEPS, RESIZE = 'LoadMultiViewImageFromMultiSweepsFiles', 'ResizeCropFlipImage'
"""Upstream's steps of a test pipeline: the one that loads the frame before, and the one that resizes."""
SWEEP_S, SWEEP_RANGE = 0.083, (3, 27)
"""Time from one sweep to the next, and the sweeps of which upstream takes one as the frame before."""
DUMPED = ('img', 'lidar2img', 'ego_pose', 'timestamp_s', 'camera_times_s')
"""Tensors of a dump from which a frame is read back; one of samples without pose or time lacks some."""
GAPS_S = (0.5, 0.05, 1.7, 6.0, 0.5)
"""Seconds from frame to frame of a drive with irregular gaps, as after missing frames."""
TURN_RAD, WAY_M = 0.25, 2.5
"""How much the car turns and moves between these frames."""
LAG_S = 0.08
"""Largest time in seconds from the first picture of a frame of a drive to its last; which camera is the first
changes from frame to frame."""


def frame(data: Mapping[str, Any], frames: int) -> Frame:
    """Return one collated sample of the test loader (batch 1, one augmentation) as a frame.

    Samples of PETR's own data set have neither pose nor scene, nor a time of their own; those of PETRv2 have
    the frame before behind the present one, which is left out: the steppers keep the last frame.

    Args:
        data: the sample.
        frames: number of frames that the head sees, 1 or 2.

    Raises:
        DataError: a key is missing, there are several samples, or, in a sample of PETR's own data set, the
            number of pictures is no multiple of `frames`.
    """
    check_given(data, ('img', 'img_metas'))
    if 'lidar2img' in data:
        return stream_frame(data)
    meta = only(data['img_metas'], 'img_metas')
    if 'lidar2img' not in meta:
        raise DataError('img_metas has no lidar2img; add it to the meta_keys of Collect3D')
    sample = camera_frame(
        only(data['img'], 'img'), meta['lidar2img'], meta, ego_pose=None, timestamp_s=None, scene_token=None
    )
    cameras, rest = divmod(len(sample.images), frames)
    if rest:
        raise DataError(
            f'img: got {len(sample.images)} pictures; expected those of all cameras for {frames} frames'
        )
    present = {name: getattr(sample, name)[:cameras] for name in OF_CAMERAS}
    return dataclasses.replace(sample, **present)


def camera_steps(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the steps of a test pipeline as `multiview_rule` reads them, those of the present frame."""
    return [
        dict(step, type='ResizeCropFlipRotImage') if step['type'] == RESIZE else step
        for step in steps
        if step['type'] != SWEEPS
    ]


def check_sweeps(filename: str, steps: Sequence[Mapping[str, Any]], frames: int) -> None:
    """Refuse (ConfigError) a test pipeline that loads another number of frames than the head sees.

    `frames` is that number, with the present one; a pipeline without the step `SWEEPS` passes. `filename` is
    the config's, for the message.
    """
    for step in steps:
        if step['type'] == SWEEPS and step.get('sweeps_num') != frames - 1:
            raise ConfigError(
                f'{filename}: {SWEEPS} of the test pipeline has sweeps_num={step.get("sweeps_num")}, '
                f'expected {frames - 1}, the number of frames that the head sees beside the present one'
            )


def start_gap_s(steps: Sequence[Mapping[str, Any]]) -> float:
    """Return the time in s that stands for the gap where there is no frame before, by a test pipeline."""
    loader = next((step for step in steps if step['type'] == SWEEPS), {})
    first, last = loader.get('sweep_range', SWEEP_RANGE)
    return (first + last) / 2.0 * SWEEP_S


def driven(frame: Frame) -> Iterator[Frame]:
    """Yield the next frames of a drive with irregular gaps, whose car turns and whose cameras lag.

    Pictures stay those of `frame`, in another order of the cameras each time: with several, every frame has
    features that differ from those of the frame before.
    """
    turn, pose = turned_way(TURN_RAD, WAY_M), np.array(frame.ego_pose, np.float64)
    count, time = len(frame.images), frame.timestamp_s
    for number, gap in enumerate(GAPS_S):
        pose, time = pose @ turn, time + gap
        lags = np.roll(np.linspace(0, min(LAG_S, gap / 4), count), number)
        yield dataclasses.replace(
            frame,
            name=f'{gap} s later',
            images=np.roll(frame.images, number + 1, axis=0),
            ego_pose=pose,
            ego_pose_inv=None,
            timestamp_s=time,
            camera_times_s=time - lags,
        )
