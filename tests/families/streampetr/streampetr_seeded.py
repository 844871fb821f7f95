"""The goldens' seeded weights and inputs, made again by the rule of FILL.md.

Source: ../shared/golden/streampetr/FILL.md. All numbers come from numpy's PCG64, seeded by the CRC of a
name, and are float64 until the end.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.seeded.by_name import name_rng, streampetr_weights

GOLDEN = Path(__file__).resolve().parents[4] / 'shared/golden/streampetr'
IN_REPOSITORY = Path(__file__).resolve().parents[2] / 'goldens/streampetr'
NUM_FRAMES = 6
FILL_SHA256 = 'bba33ba071b48a7543f34e9329bc98494e07164c0b6452f031f68e46c8577f3b'


def require_golden() -> Path:
    """Return the folder of the goldens; skip the test where it is not."""
    if not GOLDEN.is_dir():
        pytest.skip('skipped: ../shared/golden/streampetr not found')
    return GOLDEN


def seeded_state_dict(shapes: dict[str, list[int]] | None = None) -> dict[str, torch.Tensor]:
    """Return the seeded value of every key.

    Args:
        shapes: key -> shape; those of the golden's model if not given. Other models get their own values.
    """
    return streampetr_weights(
        {key: shape for key, (shape, _) in golden_keys().items()} if shapes is None else shapes
    )


def golden_keys() -> dict[str, tuple[list[int], str]]:
    """Return the shape and dtype of every key of the published R50, in order."""
    return {
        key: tuple(entry)
        for key, entry in json.loads((IN_REPOSITORY / 'state_dict.json').read_text()).items()
    }


def fill_sha256(state_dict: dict[str, torch.Tensor]) -> str:
    """Return the checksum that FILL.md defines, over all keys in their order."""
    digest = hashlib.sha256()
    for value in state_dict.values():
        digest.update(np.ascontiguousarray(value.numpy(), np.float32).tobytes())
    return digest.hexdigest()


def golden_images(frame: int) -> torch.Tensor:
    """Return the images (1, 6, 3, 256, 704) of a frame, normalised already."""
    source = name_rng(f'img_{frame}')
    fine = source.standard_normal((1, 6, 3, 256, 704))
    coarse = source.standard_normal((1, 6, 3, 8, 22)).repeat(32, axis=3).repeat(32, axis=4)
    return torch.from_numpy((0.5 * fine + coarse).astype(np.float32))


def golden_features(frame: int) -> torch.Tensor:
    """Return the features (1, 6, 256, 16, 44) of a frame of head_only.npz."""
    normal = name_rng(f'feat_{frame}').standard_normal((1, 6, 256, 16, 44))
    return torch.from_numpy((1.3 * normal).astype(np.float32))


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
