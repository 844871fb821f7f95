"""The spec survives JSON, and refuses wrong feeds with the name, what was got and what was expected."""

import json

import numpy as np
import pytest

from mmdeploy_ext.contract.memory import MemorySpec
from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import ShapeError

IMAGE = TensorSpec('input', 'float32', ('B', 3, 'H', 'W'), 'pixels', 'pixel')
SIZES = TensorSpec('img_shape', 'float32', ('B', 2), default=0.0)
MEMORY = TensorSpec('pre_memory', 'float32', (1, 8, 4), groups=(ColumnGroup('xy', (0, 1), 'm', 1e-3, 0.5),))
SPEC = GraphSpec(
    'toy/full',
    (IMAGE, SIZES, MEMORY),
    (
        TensorSpec('dets', 'float32', ('B', 'n', 5), compare='detections'),
        TensorSpec('post', 'float32', (1, 8, 4)),
    ),
    (('post', 'pre_memory'),),
)
FEEDS = dict(
    input=np.zeros((2, 3, 32, 64), np.float32),
    img_shape=np.zeros((2, 2), np.float32),
    pre_memory=np.zeros((1, 8, 4), np.float32),
)


def test_spec_survives_json():
    assert GraphSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC


def test_right_feeds_pass_with_and_without_the_optional_one():
    SPEC.check_feeds(FEEDS)
    SPEC.check_feeds({name: FEEDS[name] for name in ('input', 'pre_memory')})


@pytest.mark.parametrize(
    ('name', 'array', 'message'),
    [
        ('input', None, r"input 'input' of toy/full is missing; it takes float32 Bx3xHxW"),
        ('inputs', np.zeros(1), r"'inputs' is not an input of toy/full; its inputs are input, img_shape"),
        ('input', np.zeros((1, 3, 8, 8)), r"'input': got float64 1x3x8x8, expected float32 Bx3xHxW"),
        ('input', np.zeros((3, 8, 8), np.float32), r'got shape 3x8x8 with 3 axes, expected float32 Bx3xHxW'),
        ('input', np.zeros((2, 4, 8, 8), np.float32), r'got shape 2x4x8x8, expected float32 Bx3xHxW'),
        ('input', np.zeros((0, 3, 8, 8), np.float32), r'got shape 0x3x8x8, a batch of no images; expected'),
        ('pre_memory', np.zeros((1, 9, 4), np.float32), r"'pre_memory': got shape 1x9x4, expected.*1x8x4"),
        ('img_shape', np.zeros((1, 2), np.float32), r"'img_shape': got shape 1x2, but B is 2 in 'input'"),
    ],
)
def test_wrong_feeds_are_refused_by_name(name, array, message):
    feeds = dict(FEEDS)
    feeds.pop(name, None)
    if array is not None:
        feeds[name] = array
    with pytest.raises(ShapeError, match=message):
        SPEC.check_feeds(feeds)


def test_a_fixed_axis_says_what_to_do():
    with pytest.raises(ShapeError, match='--dynamic-export'):
        SPEC.check_feeds({**FEEDS, 'pre_memory': np.zeros((2, 8, 4), np.float32)})


def test_a_memory_survives_json():
    memory = MemorySpec(dict(a=ColumnGroup(columns=()), b=ColumnGroup(columns=(1,)), c=ColumnGroup()))
    assert MemorySpec.from_json(json.loads(json.dumps(memory.to_json()))) == memory
