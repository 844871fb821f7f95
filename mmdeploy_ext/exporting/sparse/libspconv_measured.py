"""Measured behaviour of libspconv 1.1.10 (CUDA 12.6) on single convolutions, on an NVIDIA H200.

300 random sites each, compared with numpy (docs/models-lidar.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.base.violations import ERROR, WARNING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.exporting.sparse.libspconv_parser import ParsedNode

VERSION = 'libspconv 1.1.10'
CHANNELS = (
    (4, 16), (5, 16), (8, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128),
)  # fmt: skip
"""(input, output) channels with kernels, of 126 pairs tried."""
SUBMANIFOLD_KERNEL = (3, 3, 3)
"""Only correct submanifold kernel: 1x1x3, 3x1x1, 1x3x3, 5x5x5 and 3x5x7 gave other values for 20 to 100 % of
the sites, 1x1x1 did not start."""
LARGEST_GRID = (1024, 2048, 2048)
"""Most cells per axis of `input_spatial_shape`; beyond, sites this far apart are taken for one another."""
NO_ACTIVATION = ('Sigmoid', 'LeakyReLU')
"""Activations that libspconv loads and ignores."""


def rules_of_convolution(node: ParsedNode) -> Iterator[tuple[str, str, str, str]]:
    values, weight = node.values, node.weight
    if weight.ndim == 5 and (weight.shape[-1], weight.shape[0]) not in CHANNELS:
        pairs = ', '.join(f'{inputs} -> {outputs}' for inputs, outputs in CHANNELS)
        message = (
            f'{weight.shape[-1]} -> {weight.shape[0]} channels: {VERSION} has no such kernel and aborts '
            f'when it loads the file; it has {pairs}'
        )
        yield 'weight', 'no-kernel', message, WARNING
    kernel, dilation = tuple(values['kernel_size']), tuple(values['dilation'])
    if values['subm'] and len(kernel) == 3 and (kernel != SUBMANIFOLD_KERNEL or set(dilation) != {1}):
        shape = 'x'.join(map(str, kernel))
        dilated = f' with dilation {list(dilation)}' if set(dilation) != {1} else ''
        message = (
            f'a submanifold kernel of {shape}{dilated}: {VERSION} does not start or computes other values '
            'than spconv; write a smaller kernel as 3x3x3 with zeros around it'
        )
        yield 'kernel_size', 'submanifold-kernel', message, ERROR
    if values['activation'] in NO_ACTIVATION:
        message = f'activation={values["activation"]!r}: {VERSION} loads it but applies no activation'
        yield 'activation', 'activation', message, ERROR


def rules_of_grid(node: ParsedNode) -> Iterator[tuple[str, str, str, str]]:
    grid = node.unread['input_spatial_shape']
    if len(grid) != 3:
        return
    for axis, (cells, largest) in enumerate(zip(grid, LARGEST_GRID, strict=True)):
        if cells > largest:
            advice = ''
            if axis == 0 and cells <= LARGEST_GRID[2] and grid[2] <= LARGEST_GRID[0]:
                advice = '; the other --order has room for it'
            message = (
                f'axis {axis} has {cells} cells, but {VERSION} distinguishes only {largest}: it treats '
                f'sites {largest} cells apart on this axis as neighbours{advice}'
            )
            yield 'input_spatial_shape', 'grid-size', message, WARNING
