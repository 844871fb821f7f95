"""Small networks around the custom operators, and exporting them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.exporting.ops.attention import standard_deformable_attention
from mmdeploy_ext.exporting.ops.operator import operators_as
from mmdeploy_ext.exporting.ops.rotated_nms import rotated_nms
from mmdeploy_ext.exporting.ops.upsample_bicubic import upsample_bicubic


class SuperResolution(nn.Module):
    """Features, then a picture that is larger by a factor given per call."""

    inputs: ClassVar = dict(x={0: 'B', 2: 'H', 3: 'W'}, scale={})
    outputs = ('picture',)

    def __init__(self):
        super().__init__()
        self.features, self.picture = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x, scale):
        return self.picture(upsample_bicubic(self.features(x).relu(), scale))

    @staticmethod
    def feeds(seed):
        rng = np.random.default_rng(seed)
        size = (1 + seed % 2, 3, 9 + seed, 8 + 2 * seed)
        return rng.random(size, np.float32), np.array([1.4 + 0.3 * seed], np.float32)


class RotatedDetector(nn.Module):
    """Boxes and their scores, suppressed."""

    inputs: ClassVar = dict(boxes={0: 'N'}, logits={0: 'N'})
    outputs = ('kept', 'kept_scores')

    def forward(self, boxes, logits):
        scores = logits.sigmoid()
        keep = rotated_nms(boxes, scores, 0.3)
        return boxes[keep], scores[keep]

    @staticmethod
    def feeds(seed):
        return rotated_boxes(seed, 30 + seed)


class Attention(nn.Module):
    """mmcv's own module; sizes of the maps are an input."""

    inputs: ClassVar = dict(
        query={0: 'B', 1: 'Q'},
        value={0: 'B', 1: 'S'},
        reference_points={0: 'B', 1: 'Q'},
        spatial_shapes={},
    )
    outputs = ('attended',)

    def __init__(self):
        from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention

        super().__init__()
        self.attention = MultiScaleDeformableAttention(16, 4, 2, 3, batch_first=True)
        nn.init.normal_(self.attention.sampling_offsets.weight, std=0.3)
        nn.init.normal_(self.attention.attention_weights.weight, std=0.3)

    def forward(self, query, value, reference_points, spatial_shapes):
        return self.attention(
            query, value=value, reference_points=reference_points, spatial_shapes=spatial_shapes
        )

    @staticmethod
    def feeds(seed):
        rng = np.random.default_rng(seed)
        batch, queries = 2 + seed % 2, 5 + seed
        sizes = np.array([[4 + seed, 6], [2, 3 + seed]], np.int64)
        query, value = (
            rng.standard_normal((batch, count, 16), np.float32) for count in (queries, sizes.prod(1).sum())
        )
        return query, value, rng.random((batch, queries, 2, 2), np.float32), sizes


NETS = (SuperResolution, RotatedDetector, Attention)


def rotated_boxes(seed, count, extent=12.0):
    """Return boxes (N, 5) float32 that overlap a lot, and logits (N,), all different."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        [
            rng.uniform(0, extent, (count, 2)),
            rng.uniform(0.5, 5, (count, 2)),
            rng.uniform(-4, 4, (count, 1)),
        ],
        1,
    ).astype(np.float32)
    return boxes, rng.permutation(np.linspace(-3, 3, count)).astype(np.float32)


def build(net):
    """Return a network with seeded weights."""
    torch.manual_seed(0)
    return net().eval()


def export(net, exporter, form='standard', opset=18):
    """Export a network of this file on its first feeds."""
    with operators_as(form), standard_deformable_attention():
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
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == tuple(want.shape)
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=atol)


def domains(model: onnx.ModelProto) -> set[str]:
    """Return the domains of a model's nodes, functions not included."""
    return {node.domain for node in model.graph.node}
