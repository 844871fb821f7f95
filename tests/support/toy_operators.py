"""Small networks around the custom operators, and exporting them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.exporting.ops.attention import attend
from mmdeploy_ext.exporting.ops.operator import operators_as
from mmdeploy_ext.exporting.ops.rotated_nms import rotated_keep


class RotatedDetector(nn.Module):
    """Boxes by descending score, suppressed: an operator with a body that calls another operator."""

    inputs: ClassVar = dict(boxes={0: 'N'})
    outputs = ('keep',)

    def forward(self, boxes):
        return rotated_keep(boxes[None], torch.ones_like(boxes[None, :, 0], dtype=torch.bool), 0.3)[0]

    @staticmethod
    def feeds(seed):
        return (rotated_boxes(seed, 30 + seed),)


class Attention(nn.Module):
    """Deformable attention, a traceable form; sizes of the maps are an input."""

    inputs: ClassVar = dict(
        value={0: 'B', 1: 'S'},
        locations={0: 'B', 1: 'Q'},
        weights={0: 'B', 1: 'Q'},
        spatial_shapes={},
    )
    outputs = ('attended',)

    def forward(self, value, locations, weights, spatial_shapes):
        areas = spatial_shapes[:, 0] * spatial_shapes[:, 1]
        return attend(value, spatial_shapes, areas.cumsum(0) - areas, locations, weights)

    @staticmethod
    def feeds(seed):
        rng = np.random.default_rng(seed)
        batch, queries, heads, points = 2 + seed % 2, 5 + seed, 4, 3
        sizes = np.array([[4 + seed, 6], [2, 3 + seed]], np.int64)
        value = rng.standard_normal((batch, sizes.prod(1).sum(), heads, 4), np.float32)
        locations = rng.random((batch, queries, heads, 2, points, 2), np.float32)
        return value, locations, rng.random((batch, queries, heads, 2, points), np.float32), sizes


NETS = (RotatedDetector, Attention)


def rotated_boxes(seed, count, extent=12.0):
    """Return boxes (N, 5) float32 that overlap a lot."""
    rng = np.random.default_rng(seed)
    sides = [
        rng.uniform(0, extent, (count, 2)),
        rng.uniform(0.5, 5, (count, 2)),
        rng.uniform(-4, 4, (count, 1)),
    ]
    return np.concatenate(sides, 1).astype(np.float32)


def build(net):
    """Return a network with seeded weights."""
    torch.manual_seed(0)
    return net().eval()


def export(net, exporter, form='standard', opset=18):
    """Export a network of this file on its first feeds."""
    with operators_as(form):
        return export_module(
            net,
            [torch.from_numpy(array) for array in net.feeds(0)],
            exporter=exporter,
            opset=opset,
            input_names=tuple(net.inputs),
            output_names=net.outputs,
            dynamic={name: axes for name, axes in net.inputs.items() if axes},
        )


def run(model, feeds, names):
    """Run a model in ONNX Runtime."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, dict(zip(names, feeds, strict=True)))


def assert_same(net, found, feeds, atol=2e-5):
    """Compare with the network in PyTorch, eager forms."""
    with torch.no_grad():
        wanted = net(*map(torch.from_numpy, feeds))
    assert found[0].shape == tuple(wanted.shape)
    np.testing.assert_allclose(found[0], wanted.numpy(), rtol=0, atol=atol)


def domains(model: onnx.ModelProto) -> set[str]:
    """Return the domains of a model's nodes, functions not included."""
    return {node.domain for node in model.graph.node}
