"""The spec survives JSON, and refuses wrong feeds with the name, what was got and what was expected."""

import dataclasses
import json

import numpy as np
import pytest

from mmdeploy_ext.base.errors import ShapeError
from mmdeploy_ext.graphs.output_comparison import with_half_ends
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, Pixels, TensorSpec, with_half_features

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
        ('input', None, r"input 'input' of toy/full is missing; expected float32 Bx3xHxW"),
        ('inputs', np.zeros(1), r"'inputs' is not an input of toy/full; its inputs are input, img_shape"),
        ('input', np.zeros((1, 3, 8, 8)), r"'input': got float64 1x3x8x8, expected float32 Bx3xHxW"),
        ('input', np.zeros((3, 8, 8), np.float32), r'got shape 3x8x8 with 3 axes, expected float32 Bx3xHxW'),
        ('input', np.zeros((2, 4, 8, 8), np.float32), r'got shape 2x4x8x8, expected float32 Bx3xHxW'),
        ('input', np.zeros((0, 3, 8, 8), np.float32), r'got shape 0x3x8x8, an empty batch; expected'),
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


def of_inputs(**changes):
    """Return SPEC with `changes` of its first input."""
    return dataclasses.replace(SPEC, inputs=(dataclasses.replace(IMAGE, **changes), *SPEC.inputs[1:]))


@pytest.mark.parametrize('changes', [dict(smallest=33), dict(multiple=64), dict(positive=True)])
def test_sizes_and_signs_of_an_input_are_checked(changes):
    of_inputs(smallest=32, multiple=32).check_feeds(FEEDS)
    with pytest.raises(ShapeError):
        of_inputs(**changes).check_feeds(FEEDS)


def test_what_is_not_fed_is_filled_with_its_default_along_the_axes_of_the_feeds():
    required = TensorSpec('scale', 'float32', ('B', 4), default=1.5, required=True)
    spec = dataclasses.replace(SPEC, inputs=(*SPEC.inputs, required))
    fed = dict(input=FEEDS['input'])
    np.testing.assert_array_equal(spec.with_defaults(fed)['scale'], np.full((2, 4), 1.5))
    assert spec.with_defaults(fed)['img_shape'].shape == (2, 2)
    assert spec.with_required(fed).keys() == {'input', 'scale'}


@pytest.mark.parametrize('swapped', [False, True])
@pytest.mark.parametrize('last', [False, True])
def test_pixels_are_normalised_by_channel_and_found_again(swapped, last):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 6)).astype(np.uint8)
    order = [2, 1, 0] if swapped else [0, 1, 2]
    mean, std = (np.float32(values)[:, None, None] for values in ((0, 10, 20), (2, 3, 4)))
    normalised = (images - mean) / std
    given = images[:, order].transpose(0, 2, 3, 1) if last else images[:, order]
    pixels = Pixels((0, 10, 20), (2, 3, 4), swapped, last)
    np.testing.assert_allclose(pixels.normalised(given), normalised, rtol=1e-6)
    np.testing.assert_array_equal(pixels.of_normalised(normalised), given)
    spec = of_inputs(pixels=pixels, dtype='uint8')
    assert spec.inputs[0].sides == ((1, 2) if last else (2, 3))
    np.testing.assert_array_equal(spec.rounded(dict(input=normalised))['input'], given)


def test_pictures_and_features_become_float16_and_pixels_do_not():
    outputs = TensorSpec('a', 'float32', ('B', 4)), TensorSpec('b', 'float32', ('B', 4), unit='pixel')
    half = with_half_features(dataclasses.replace(SPEC, outputs=(*outputs, SPEC.outputs[0])))
    assert [tensor.dtype for tensor in half.inputs] == ['float16', 'float32', 'float32']
    assert [tensor.dtype for tensor in with_half_ends(SPEC).inputs] == ['float16', 'float32', 'float16']
    assert [tensor.dtype for tensor in half.outputs] == ['float16', 'float32', 'float32']
    given = dict(input=FEEDS['input'], img_shape=FEEDS['img_shape'])
    assert [array.dtype for array in half.rounded(given).values()] == [np.float16, np.float32]
    assert half.rounded(dict(input=FEEDS['input'].astype(np.float64)))['input'].dtype == np.float64
