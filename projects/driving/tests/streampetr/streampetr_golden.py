"""The goldens' seeded weights and inputs, made again by the rule of FILL.md.

Source: ../shared/golden/streampetr/FILL.md. All numbers come from numpy's PCG64, seeded by the CRC of a
name, and are float64 until the end.
"""

from __future__ import annotations

import functools
import json

import numpy as np
import torch

import upstream_goldens
from dev.seeded.by_name import streampetr_weights
from mmdeploy_ext.runtime.frames import Frame
from upstream_goldens import fill_sha256

__all__ = ['fill_sha256', 'golden_frame', 'golden_images', 'golden_keys', 'seeded_state_dict']
GOLDEN, IN_REPOSITORY = upstream_goldens.SHARED / 'streampetr', upstream_goldens.IN_REPOSITORY / 'streampetr'
require_golden = functools.partial(upstream_goldens.folder_of, 'streampetr')
NUM_FRAMES = 6
FILL_SHA256 = 'bba33ba071b48a7543f34e9329bc98494e07164c0b6452f031f68e46c8577f3b'


def seeded_state_dict(shapes: dict[str, list[int]] | None = None) -> dict[str, torch.Tensor]:
    """Return the seeded value of every key."""
    return streampetr_weights(
        {key: shape for key, (shape, _) in golden_keys().items()} if shapes is None else shapes
    )


def golden_keys() -> dict[str, tuple[list[int], str]]:
    """Return the shape and dtype of every key of the published R50, in order."""
    return {
        key: tuple(entry)
        for key, entry in json.loads((IN_REPOSITORY / 'state_dict.json').read_text()).items()
    }


def golden_images(frame: int) -> torch.Tensor:
    """Return the images (1, 6, 3, 256, 704) of a frame, normalised already."""
    return upstream_goldens.pictures(f'img_{frame}', (256, 704), (32, 32))


def golden_features(frame: int) -> torch.Tensor:
    """Return the features (1, 6, 256, 16, 44) of a frame of head_only.npz."""
    return upstream_goldens.normal(f'feat_{frame}', (1, 6, 256, 16, 44), 1.3)


def golden_frame(inputs: dict[str, np.ndarray], frame: int) -> dict[str, torch.Tensor]:
    """Return a frame's calibration, poses, time and `prev_exists` from inputs.npz, with a batch axis."""
    names = ('lidar2img', 'intrinsics', 'extrinsics', 'ego_pose', 'ego_pose_inv', 'timestamp')
    data = {name: torch.as_tensor(inputs[f'f{frame}_{name}']).unsqueeze(0) for name in names}
    return {**data, 'prev_exists': torch.as_tensor(inputs[f'f{frame}_prev_exists'])}


def golden_frame_of_runtime(index: int) -> Frame:
    """Return a golden frame as the runtime takes it."""
    inputs = np.load(require_golden() / 'inputs.npz')
    names = ('lidar2img', 'intrinsics', 'ego_pose', 'ego_pose_inv')
    return Frame(
        images=golden_images(index)[0].numpy(),
        timestamp_s=float(inputs[f'f{index}_timestamp']),
        scene_token=str(inputs[f'f{index}_scene']),
        **{name: inputs[f'f{index}_{name}'].astype(np.float64) for name in names},
    )
