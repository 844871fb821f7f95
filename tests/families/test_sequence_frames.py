"""Which frames a proof takes of a data set, and the scene of one that is read from a dump."""

import numpy as np
import pytest

from mm2onnx_driving.common.camera_samples import dumped_frame
from mmdeploy_ext.bench.kinds.sequence_samples import choose_frames

TOKENS = ['a'] * 5 + ['b'] * 3 + ['c'] * 4


@pytest.mark.parametrize(
    ('count', 'expected'),
    [
        (6, [0, 1, 5, 6, 8, 9]),
        (2, [0, 1]),
        (12, list(range(12))),
        (100, list(range(12))),
        (11, [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]),
    ],
)
def test_a_proof_starts_several_scenes(count, expected):
    assert choose_frames(TOKENS, count) == expected


def test_one_scene_is_taken_as_far_as_needed():
    assert choose_frames(['a'] * 9, 7) == list(range(7))


def test_a_dumped_frame_without_a_scene_has_the_unknown_one():
    tensors = dict(img=np.zeros((1, 1, 3, 4, 4)), lidar2img=np.eye(4)[None])
    for manifest in (dict(scene_token=None), {}):
        assert dumped_frame(tensors, manifest).scene_token == ''
    assert dumped_frame(tensors, dict(scene_token='s')).scene_token == 's'
