"""Profiles from text: min/opt/max by input or axis."""

import pytest

from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.engines.tensorrt.shapes import parse_shapes, profiles_of

SPEC = GraphSpec(
    'toy',
    (
        TensorSpec('image', 'float32', ('B', 3, 'H', 'W')),
        TensorSpec('scale', 'float32', ('B', 4)),
        TensorSpec('fixed', 'float32', (1,)),
        TensorSpec('rows', 'int64', ('B+1',)),
    ),
    (),
)
IMAGE = 'image=1x3x32x64/2x3x64x64/4x3x96x128'


def test_one_input_gives_the_axes_of_all():
    assert profiles_of(SPEC, parse_shapes([IMAGE])) == {
        'image': ((1, 3, 32, 64), (2, 3, 64, 64), (4, 3, 96, 128)),
        'scale': ((1, 4), (2, 4), (4, 4)),
        'rows': ((2,), (3,), (5,)),
    }


def test_axes_alone_are_enough_and_one_shape_stands_for_three():
    found = profiles_of(SPEC, parse_shapes(['B=1/2/4', 'H=32', 'W=64']))
    assert found['image'] == ((1, 3, 32, 64), (2, 3, 32, 64), (4, 3, 32, 64))


@pytest.mark.parametrize(
    ('texts', 'message'),
    [
        (['image=1x3x32'], r'image: 3 axes, the input is Bx3xHxW'),
        (['image=1x3x32x64/1x3x64x64'], r'expected NAME=MIN/OPT/MAX'),
        (['image=4x3x32x64/2x3x64x64/4x3x96x128'], r'sizes have to grow from MIN over OPT to MAX'),
        (['image=1x3x32x64/2x3x64x64/4x3x96'], r'the same number of axes'),
        (['image=axbxcxd'], r'expected NAME=MIN/OPT/MAX'),
        (['imag=1x3x32x64'], r'imag: is not an input or axis of the graph; did you mean image\?'),
        (['image=1x4x32x64'], r'for an axis that is fixed at 3'),
        ([IMAGE, 'B=1/1/1'], r'B: gives \(1, 1, 1\) for axis B, another one gave \(1, 2, 4\)'),
        (['B=1', 'B=2'], r'B is given twice'),
        (['B=1'], r'no sizes are given for image Bx3xHxW \(H, W\)'),
        (['B=\u00b2'], r'expected NAME=MIN/OPT/MAX'),
        ([], r'image .* \(B, H, W\); scale Bx4 \(B\); rows B\+1 \(B\+1\)'),
    ],
)
def test_wrong_shapes_are_refused_by_name(texts, message):
    with pytest.raises(UsageError, match=message):
        profiles_of(SPEC, parse_shapes(texts))
