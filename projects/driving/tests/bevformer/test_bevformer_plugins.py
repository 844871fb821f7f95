"""BEVFormer's contract trt-plugin: proven through the plug-ins in numpy, which equal PyTorch and upstream."""

import numpy as np
import onnx
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

import bevformer_golden as golden
from mm2onnx_driving import plugin_kernels
from mm2onnx_driving.bevformer import plugin_operators as operators
from mmdeploy_ext.families.synthetic.drive import synthetic_drive
from mmdeploy_ext.runtime.bev_motion import rotation_ties
from proofs import prove
from toy_frames import BEVFORMER as toy

detector, paths = toy.fixtures(contract='trt-plugin')


@pytest.mark.matrix
def test_the_file_is_proven_through_the_plugins(detector, paths):
    verdict = prove(detector, paths, synthetic_drive(4, detector.rule))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] == verdict.summary()['reference'] >= 200
    graph = onnx.load(paths[0]).graph
    nodes = [node for node in graph.node if node.domain]
    assert {node.domain for node in nodes} == {'trt.plugins'}
    # two layers of the encoder with two attentions each, two of the decoder with one
    assert [node.op_type for node in nodes] == ['RotateTRT', *['MultiScaleDeformableAttnTRT'] * 6]


def attention(seed, anchors=2):
    rng = np.random.default_rng(seed)
    shapes = np.array([[5, 7], [2, 3]])
    places = rng.choice([0.0, 0.5 / 7, 1.0, 0.31, -0.2], (2, 11, 1, 2 * anchors))  # edges, centres, outside
    return (
        rng.standard_normal((2, 41, 3, 8)).astype(np.float32),
        shapes,
        places.astype(np.float32),
        rng.choice([0.0, 0.5, -1.0, 0.37], (2, 11, 3, 2 * 4 * 2)).astype(np.float32),
        rng.standard_normal((2, 11, 3, 2 * 4)).astype(np.float32),
    )


@pytest.mark.parametrize('anchors', [1, 4])
def test_the_attention_is_that_of_mmcv_also_at_borders(anchors):
    value, shapes, places, offsets, logits = attention(anchors, anchors)
    found = plugin_kernels.attend(value, shapes, places, offsets, logits)
    tensors = [torch.from_numpy(array) for array in (value, shapes, places, offsets, logits)]
    locations = torch.zeros(2, 11, 3, 2, 4, 2)
    for level, (height, width) in enumerate(shapes):
        for point in range(4):
            column = 2 * (point % anchors)
            shift = tensors[3].view(2, 11, 3, 2, 4, 2)[:, :, :, level, point] / torch.tensor([width, height])
            locations[:, :, :, level, point] = tensors[2][:, :, :, column : column + 2] + shift
    weights = tensors[4].softmax(-1).view(2, 11, 3, 2, 4)
    expected = multi_scale_deformable_attn_pytorch(tensors[0], tensors[1], locations, weights)
    np.testing.assert_allclose(found.reshape(2, 11, -1), expected, atol=1e-5)
    torch.testing.assert_close(operators.ATTENTION(*tensors), torch.from_numpy(found), atol=1e-5, rtol=0)


def test_the_rotation_copies_the_cells_that_torchvision_copies():
    stored = np.load(golden.IN_REPOSITORY / 'rotate.npz')
    for name in stored.files:
        _, size, center, angle = name.split('_')
        side, about = int(size), np.float32([center.removeprefix('c')] * 2)
        ties = rotation_ties(float(angle), about.tolist(), (side, side))
        numbers = 1 + np.arange(side * side, dtype=np.float32).reshape(1, side, side)
        turned = plugin_kernels.rotate(numbers, np.float32(angle), about, interpolation=1).reshape(-1) - 1
        assert (turned != stored[name]).sum() <= ties, name
        by_graph = operators.ROTATE(
            torch.from_numpy(numbers), torch.tensor(float(angle)), torch.from_numpy(about), 1
        )
        assert (by_graph.numpy().reshape(-1) - 1 != stored[name]).sum() <= ties, name


def test_an_oblong_view_turns_about_any_point_by_the_nearest_cells():
    view, about = torch.rand(2, 5, 8), torch.tensor([3.0, 1.5])
    for degrees in (13.0, -200.0, 359.0):
        turned = plugin_kernels.rotate(view.numpy(), np.float32(degrees), about.numpy())
        assert torch.equal(operators.ROTATE(view, torch.tensor(degrees), about, 1), torch.from_numpy(turned))
        cells = operators.turn_view(view.flatten(1).t(), torch.tensor(degrees), about.tolist(), 5, 8)
        np.testing.assert_array_equal(cells.t().reshape(2, 5, 8), turned)
