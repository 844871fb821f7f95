"""Profiles from text: min/opt/max by input or axis."""

from mmdeploy_ext.engines.tensorrt.engine import parse_shapes, profiles_of
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec

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
