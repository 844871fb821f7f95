"""RoiAlign as gathers in a Loop: the same values in both modes; other modes stay; TensorRT-RTX builds it."""

import numpy as np
import onnx
import onnxruntime
import pytest

from mmdeploy_ext.graphs.passes.roi_align import replace_roi_align
from toy_engines import parse

SIZE = 'output_height = 3, output_width = 4'


def pooling(attributes='', kind='float', opset=17):
    return parse(
        f'[pool] y = RoiAlign<{SIZE}, spatial_scale = 0.25{attributes}>(x, b, i)',
        f'{kind}[B,5,H,W] x, {kind}[R,4] b, int64[R] i',
        f'{kind}[R,5,3,4] y',
        opset=opset,
    )


def run(model, feeds):
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, feeds)[0]


def feeds(kind=np.float32):
    """Return a map and regions: inside, across each border, beyond them, points, and one of no height."""
    draw = np.random.default_rng(0)
    corners = draw.uniform(-30, 110, (60, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    others = [
        [0, 0, 0, 0],
        [40, 40, 40, 40],
        [10, 20, 60, 20],
        [-9, -9, -8, -7],
        [300, 300, 340, 330],
        [0, 0, 96, 64],
    ]
    boxes = np.concatenate([boxes, others]).astype(kind)
    return dict(
        x=draw.standard_normal((2, 5, 16, 24)).astype(kind), b=boxes, i=draw.integers(0, 2, len(boxes))
    )


@pytest.mark.parametrize(
    ('mode', 'ratio', 'opset'), [('half_pixel', 0, 16), ('output_half_pixel', 0, 20), ('half_pixel', 3, 20)]
)
def test_values_are_the_same_inside_at_the_border_and_outside(mode, ratio, opset):
    model = pooling(f', sampling_ratio = {ratio}, coordinate_transformation_mode = "{mode}"', opset=opset)
    replaced, changed = replace_roi_align(model)
    operators = {node.op_type for node in replaced.graph.node}
    assert changed and 'RoiAlign' not in operators and not replaced.functions
    assert [entry.domain for entry in replaced.opset_import] == ['']
    wanted, given = run(model, feeds()), run(replaced, feeds())
    assert np.abs(wanted).max() > 1 and (np.abs(wanted).max(axis=(1, 2, 3)) == 0).any()
    np.testing.assert_allclose(given, wanted, atol=1e-6)
    again, changed = replace_roi_align(replaced)
    assert not changed and again == replaced


def test_no_regions_and_several_layers():
    text = f"""a = RoiAlign<{SIZE}>(x, b, i) z = RoiAlign<{SIZE}, spatial_scale = 0.5>(x, b, i)
        y = Add(a, z)"""
    model = parse(text, 'float[B,5,H,W] x, float[R,4] b, int64[R] i', 'float[R,5,3,4] y')
    replaced, _ = replace_roi_align(model)
    np.testing.assert_allclose(run(replaced, feeds()), run(model, feeds()), atol=1e-5)
    none = feeds() | dict(b=np.zeros((0, 4), np.float32), i=np.zeros(0, np.int64))
    assert run(replaced, none).shape == (0, 5, 3, 4)


def test_regions_in_float16_are_computed_in_float32():
    replaced, _ = replace_roi_align(pooling(kind='float16'))
    halves = feeds(np.float16)
    wide = {name: array.astype(np.float32) if name != 'i' else array for name, array in halves.items()}
    found = run(replaced, halves)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, run(pooling(), wide).astype(np.float16))


@pytest.mark.parametrize(('attributes', 'opset'), [(', mode = "max"', 17), ('', 15)])
def test_other_poolings_stay(attributes, opset):
    model = pooling(attributes, opset=opset)
    replaced, changed = replace_roi_align(model)
    assert not changed and replaced == model
