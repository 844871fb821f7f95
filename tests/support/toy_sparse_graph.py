"""A small sparse graph with all that the big ones have: residual block, strided convolution, dense tail."""

import numpy as np

from mmdeploy_ext.sparse.ir import Add, Relu, Reshape, ScatterDense, SparseConvolution, SparseGraph, Transpose

GRID = (24, 24, 9)
CHANNELS = 5


def graph(seed=0):
    """xyz, 5 -> 8 channels, block of two, 8 -> 16 with stride 2, dense (1, 80, 12, 12)."""
    rng = np.random.default_rng(seed)
    nodes = (
        _convolution(rng, 0, 'conv_input.0', '0', '1', CHANNELS, 8),
        _convolution(rng, 1, 'block.0.conv1', '1', '2', 8, 8),
        _convolution(rng, 2, 'block.0.conv2', '2', '3', 8, 8, activation='None'),
        Add('add0', 'block.0', ('3', '1'), '4'),
        Relu('relu0', 'block.0.relu', ('4',), '5'),
        _convolution(
            rng, 3, 'down.0', '5', '6', 8, 16, subm=False, stride=(2, 2, 2), output_spatial_shape=(12, 12, 5)
        ),
        ScatterDense('scatter0', '', ('6',), '7', (12, 12, 5), (1, 16, 12, 12, 5)),
        Transpose('transpose0', '', ('7',), '8', (0, 1, 4, 2, 3)),
        Reshape('reshape0', '', ('8',), '9', (1, 80, 12, 12)),
    )
    return SparseGraph(nodes, 'xyz', GRID, CHANNELS, '9', (1, 80, 12, 12))


def voxels(rows=60, seed=0):
    """(N, 5) float32 and (N, 4) int32 without duplicates, in no order."""
    rng = np.random.default_rng(seed)
    flat = rng.choice(int(np.prod(GRID)), rows, replace=False)
    coordinates = np.stack([np.zeros_like(flat), *np.unravel_index(flat, GRID)], 1).astype(np.int32)
    return rng.standard_normal((rows, CHANNELS)).astype(np.float32), coordinates


def _convolution(rng, number, module, source, output, inputs, outputs, **changes):
    facts = dict(
        weight=(2 * rng.standard_normal((outputs, 3, 3, 3, inputs)) / np.sqrt(27 * inputs)).astype(
            np.float32
        ),
        bias=(0.02 * rng.standard_normal(outputs)).astype(np.float32),
        kernel_size=(3, 3, 3),
        stride=(1, 1, 1),
        padding=(1, 1, 1),
        dilation=(1, 1, 1),
        output_padding=(0, 0, 0),
        subm=True,
        input_spatial_shape=GRID,
        output_spatial_shape=GRID,
        activation='ReLU',
    )
    return SparseConvolution(f'conv{number}', module, (source,), output, **(facts | changes))
