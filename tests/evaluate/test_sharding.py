"""Scenes stay whole: every frame exactly once, in order within its scene, whatever the number of ranks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdeploy_ext.core.distributed import shard_scenes
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.evaluate import loop


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    world_size=st.integers(1, 5),
)
def test_every_frame_is_run_once_and_no_scene_is_split(lengths, world_size):
    tokens = [f'scene-{scene}' for scene, length in enumerate(lengths) for _ in range(length)]
    shards = [shard_scenes(tokens, rank, world_size) for rank in range(world_size)]

    assert sorted(index for shard in shards for index in shard) == list(range(len(tokens)))
    owners = [{tokens[index] for index in shard} for shard in shards]
    assert all(not one & other for i, one in enumerate(owners) for other in owners[:i])
    assert all(shard == sorted(shard) for shard in shards)


def test_work_is_balanced_by_frames_not_by_scenes():
    tokens = ['long'] * 6 + ['x'] * 2 + ['y'] * 2 + ['z'] * 2
    assert [len(shard_scenes(tokens, rank, 2)) for rank in range(2)] == [6, 6]


WRAPPERS = {
    'boxes': lambda boxes: boxes,
    'boxes and masks': lambda boxes: (boxes, []),
    'masks with scores': lambda boxes: ([], ([[np.ones((4, 4), bool)]], boxes)),
    'instances beside a map': lambda boxes: dict(
        pan_results=np.zeros((4, 4), np.int32), ins_results=(boxes, [])
    ),
    'boxes in 3D': lambda boxes: dict(
        pts_bbox=dict(boxes_3d=SimpleNamespace(tensor=torch.from_numpy(boxes[0])), labels_3d=None)
    ),
}
"""Kinds of results of one sample, as mmdet and mmdet3d evaluate them, around boxes per class."""


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS)
def test_boxes_that_are_nan_or_infinite_are_not_evaluated(wrap, value):
    boxes = [np.ones((2, 5), np.float32), np.zeros((0, 5), np.float32)]
    loop._check_finite(3, wrap(boxes))
    boxes[0][1, 2] = value
    with pytest.raises(DataError, match=r'^sample 3: the model gave boxes'):
        loop._check_finite(3, wrap(boxes))
