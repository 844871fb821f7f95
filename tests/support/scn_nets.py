"""Sparse encoders for tests, written here: the two reference networks at any grid, and small odd ones."""

import functools

import torch
from mmdet3d.models.middle_encoders import SparseEncoder
from mmdet3d.ops import make_sparse_convmodule
from spconv.pytorch import SparseConv3d, SparseConvTensor, SparseModule, SparseSequential, SubMConv3d
from torch import nn

from mmdeploy_ext.exporting.sparse.trace import trace

CHANNELS = ((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128))
XYZ_PADDINGS = ((0, 0, 1), (0, 0, 1), (0, 0, (1, 1, 0)), (0, 0))
BEVFUSION_PREFIX = 'encoders.lidar.backbone.'
CENTERPOINT_PREFIX = 'backbone.'


class XyzEncoder(SparseEncoder):
    """mmdet3d's encoder with x first: what mit-han-lab's BEVFusion does, under its key names."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.conv_out = make_sparse_convmodule(
            self.encoder_channels[-1][-1],
            self.output_channels,
            kernel_size=(1, 1, 3),
            stride=(1, 1, 2),
            norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01),
            padding=0,
            indice_key='spconv_down2',
            conv_type='SparseConv3d',
        )

    def forward(self, voxel_features, coors, batch_size):
        x = SparseConvTensor(voxel_features, coors.int(), self.sparse_shape, batch_size)
        x = self.conv_input(x)
        for layer in self.encoder_layers:
            x = layer(x)
        dense = self.conv_out(x).dense()
        samples, channels, height, width, depth = dense.shape
        dense = dense.permute(0, 1, 4, 2, 3).contiguous()
        return dense.view(samples, channels * depth, height, width)


def bevfusion(shape=(1440, 1440, 41), channels=CHANNELS, paddings=XYZ_PADDINGS, output_channels=128, base=16):
    """mit-han-lab's BEVFusion encoder, coordinates x, y, z."""
    encoder = XyzEncoder(
        in_channels=5,
        sparse_shape=list(shape),
        base_channels=base,
        output_channels=output_channels,
        encoder_channels=channels,
        encoder_paddings=paddings,
        block_type='basicblock',
    )
    return encoder.eval()


SMALL = dict(channels=((4, 4, 8), (8, 8)), paddings=((0, 0, 1), (0, 0)), output_channels=8, base=4)


@functools.cache
def traced_small():
    """Return the graph of a small BEVFusion encoder, 20 x 24 x 9 cells."""
    torch.manual_seed(10)  # other weights make float32 sums of another order differ by more
    return trace(bevfusion((20, 24, 9), **SMALL), order='xyz', spatial_shape=(20, 24, 9), in_channels=5)


class Det3dBlock(SparseModule):
    """Residual block with keyed convolutions that have a bias."""

    def __init__(self, channels, key):
        super().__init__()
        self.conv1 = SubMConv3d(channels, channels, 3, padding=1, bias=True, indice_key=key)
        self.bn1 = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)
        self.relu = nn.ReLU()
        self.conv2 = SubMConv3d(channels, channels, 3, padding=1, bias=True, indice_key=key)
        self.bn2 = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)

    def forward(self, x):
        out = self.conv1(x)
        out = out.replace_feature(self.bn1(out.features))
        out = out.replace_feature(self.relu(out.features))
        out = self.conv2(out)
        out = out.replace_feature(self.bn2(out.features))
        out = out.replace_feature(out.features + x.features)
        return out.replace_feature(self.relu(out.features))


class Det3dEncoder(nn.Module):
    """The published CenterPoint's encoder, under its key names; coordinates z, y, x."""

    def __init__(self, in_channels=5, widths=(16, 32, 64, 128)):
        super().__init__()
        first, last = widths[0], widths[-1]
        self.conv_input = SparseSequential(
            SubMConv3d(in_channels, first, 3, bias=False, indice_key='res0'),
            norm(first),
            nn.ReLU(inplace=True),
        )
        self.conv1 = SparseSequential(Det3dBlock(first, 'res0'), Det3dBlock(first, 'res0'))
        for number, padding in enumerate((1, 1, [0, 1, 1]), 1):
            self.add_module(f'conv{number + 1}', self.stage(widths, number, padding))
        self.extra_conv = SparseSequential(
            SparseConv3d(last, last, (3, 1, 1), (2, 1, 1), bias=False), norm(last), nn.ReLU()
        )

    @staticmethod
    def stage(widths, number, padding):
        channels, key = widths[number], f'res{number}'
        return SparseSequential(
            SparseConv3d(widths[number - 1], channels, 3, 2, padding=padding, bias=False),
            norm(channels),
            nn.ReLU(inplace=True),
            Det3dBlock(channels, key),
            Det3dBlock(channels, key),
        )

    def forward(self, voxel_features, coors, batch_size, input_shape):
        shape = [input_shape[2] + 1, input_shape[1], input_shape[0]]
        x = self.conv_input(SparseConvTensor(voxel_features, coors.int(), shape, batch_size))
        levels = [x := layer(x) for layer in (self.conv1, self.conv2, self.conv3, self.conv4)]
        dense = self.extra_conv(x).dense()
        samples, channels, depth, height, width = dense.shape
        return dense.view(samples, channels * depth, height, width), dict(zip('abcd', levels, strict=True))


def norm(channels):
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)


def centerpoint(**settings):
    return Det3dEncoder(**settings).eval()


def second(shape=(9, 24, 24), in_channels=4):
    """mmdet3d's encoder of SECOND (block_type conv_module), small."""
    encoder = SparseEncoder(
        in_channels,
        list(shape),
        base_channels=4,
        output_channels=8,
        encoder_channels=((4,), (8, 8, 8), (8, 8, 8)),
        encoder_paddings=((1,), (1, 1, 1), (1, 1, 1)),
    )
    return encoder.eval()


def sweep(shape, count, in_channels, seed=0):
    """Return features (N, C) float32 and distinct coordinates (N, 4) int32 in axis order of `shape`."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(shape[0] * shape[1] * shape[2], generator=generator)[:count]
    axes = torch.stack([flat // (shape[1] * shape[2]), flat // shape[2] % shape[1], flat % shape[2]], 1)
    coordinates = nn.functional.pad(axes, (1, 0)).int()
    return torch.randn(count, in_channels, generator=generator).numpy(), coordinates.numpy()
