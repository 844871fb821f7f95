"""The numpy pieces of dense heads equal mmdet's anchors and box coder, and refuse maps that do not fit."""

import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.core import DeltaXYWHBBoxCoder, build_prior_generator

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.base.errors import InferenceError
from mmdeploy_ext.families.common.runtime import dense
from mmdeploy_ext.runtime import box_coders
from mmdeploy_ext.runtime.detect import detect
from mmdeploy_ext.spec.preparation import PreprocessRule
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec

STRIDES = [8, 16, 32]
MEANS, STDS = [0.0, 0.01, -0.02, 0.0], [0.1, 0.1, 0.2, 0.2]
GENERATORS = {
    'mmdet': dict(ratios=[1.0], octave_base_scale=8, scales_per_octave=1),
    'centred': dict(ratios=[1.0], octave_base_scale=8, scales_per_octave=1, center_offset=0.5),
    'several': dict(ratios=[0.5, 2.0], scales=[3.0, 5.0]),
}


def test_nan_of_a_network_is_no_picture_without_results():
    """Thresholds leave NaN out: a half-precision file that overflowed found nothing, with exit status 0."""
    outputs = dict(dets=np.ones((1, 2, 5), np.float32), labels=np.array([[0, -1]]))
    outputs['dets'][0, 1] = np.nan  # padding
    tensors = tuple(TensorSpec(name, 'float32', (), compare='detections') for name in outputs)
    spec = GraphSpec('dense', (TensorSpec('input', 'float32', ('B', 3, 'H', 'W')),), tensors)
    facts = dict(family='dense', form='full', options={}, postprocess={}, classes=('a', 'b'))
    metadata = types.SimpleNamespace(spec=spec, preprocess=PreprocessRule(), **facts)
    backend = types.SimpleNamespace(
        metadata=metadata, path='m.onnx', select_inputs=dict, infer=lambda feeds: outputs
    )
    image = np.zeros((8, 8, 3), np.uint8)
    assert len(detect(backend, image)) == 1
    for column, value in ((1, np.nan), (1, np.inf), (4, np.nan)):
        outputs['dets'][0, 0] = 1
        outputs['dets'][0, 0, column] = value
        with pytest.raises(InferenceError, match='NaN'):
            detect(backend, image)


@pytest.mark.parametrize('kind', GENERATORS)
def test_anchors_are_mmdets_bit_for_bit(kind):
    size = 33, 70
    generator = build_prior_generator(dict(type='AnchorGenerator', strides=STRIDES, **GENERATORS[kind]))
    shapes = dense.level_shapes(*size, STRIDES)
    wanted = generator.grid_priors(shapes, device='cpu')
    found = dense.priors_of(shapes, STRIDES, [base.tolist() for base in generator.base_anchors])
    for reference, anchors in zip(wanted, found, strict=True):
        assert anchors.dtype == np.float32
        np.testing.assert_array_equal(anchors, reference.numpy())


@pytest.mark.parametrize('size', [(800, 1344), (33, 70), (1, 9)])
def test_level_shapes_are_those_of_stride_two_convolutions(size):
    x = torch.zeros(1, 1, *size)
    found = dense.level_shapes(*size, [8, 16, 32, 64, 128])
    for _ in range(3):
        x = torch.nn.functional.conv2d(x, torch.zeros(1, 1, 3, 3), stride=2, padding=1)
    for shape in found:
        assert tuple(x.shape[2:]) == shape
        x = torch.nn.functional.conv2d(x, torch.zeros(1, 1, 3, 3), stride=2, padding=1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.1, 1.0, 30.0, 1000.0]), st.sampled_from([None, 0, 32]))
def test_decoding_equals_mmdets_coder_also_where_it_clamps(seed, scale, ctr_clamp):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(-50, 500, (40, 2)), rng.uniform(1, 300, (40, 2))
    anchors = np.concatenate([corner, corner + size], 1).astype(np.float32)
    deltas = (rng.normal(size=(2, 40, 4)) * scale).astype(np.float32)
    bounds = {} if ctr_clamp is None else dict(ctr_clamp=ctr_clamp)
    coder = DeltaXYWHBBoxCoder(MEANS, STDS, add_ctr_clamp=bool(bounds), **bounds)
    priors = torch.from_numpy(anchors)
    wanted = np.stack([coder.decode(priors, torch.from_numpy(image)).numpy() for image in deltas])
    ours = box_coders.Delta(means=MEANS, stds=STDS, wh_ratio_clip=16 / 1000, **bounds)
    found = ours.boxes(np, anchors, dict(bbox_pred=deltas), 0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * max(np.abs(wanted).max(), 1))
