"""Sparse graphs built by hand, with no module to trace: BEVFusion's encoder at any grid and width."""

import numpy as np

import toy_seeded as seeded
from mmdeploy_ext.exporting.sparse.fold import fold
from mmdeploy_ext.runtime.sparse.ir import (
    Add,
    BatchNorm,
    Relu,
    Reshape,
    ScatterDense,
    SparseConvolution,
    SparseGraph,
    Transpose,
    renumber,
)
from mmdeploy_ext.runtime.sparse.plan import dense_output_shape

GRID = (24, 16, 25)
FULL_GRID = (1440, 1440, 41)
PREFIX = 'encoders.lidar.backbone.'
EPS = 1e-3


def bevfusion(grid=GRID, widths=(8, 8, 16, 16), out_channels=16, prefix=PREFIX, folded=True):
    """BEVFusion's encoder in xyz: conv_input, four stages of two blocks, three strided convolutions,
    conv_out.

    With FULL_GRID, widths (16, 32, 64, 128) and out_channels 128 it is the goldens' network, weights
    included.
    """
    builder = Builder(grid, prefix)
    builder.convolution('conv_input.0', 'conv_input.1', 5, widths[0])
    paddings = ((1, 1, 1), (1, 1, 1), (1, 1, 0))
    for stage, width in enumerate(widths):
        path = f'encoder_layers.encoder_layer{stage + 1}'
        for block in range(2):
            builder.block(f'{path}.{block}', width)
        if stage < 3:
            builder.convolution(
                f'{path}.2.0',
                f'{path}.2.1',
                width,
                widths[stage + 1],
                stride=(2, 2, 2),
                padding=paddings[stage],
            )
    builder.convolution(
        'conv_out.0',
        'conv_out.1',
        widths[3],
        out_channels,
        kernel=(1, 1, 3),
        stride=(1, 1, 2),
        padding=(0, 0, 0),
    )
    graph = builder.dense(out_channels)
    return fold(graph, 'fp32') if folded else graph


def full():
    """The goldens' network, folded in fp32."""
    return bevfusion(FULL_GRID, (16, 32, 64, 128), 128)


SMALL_GRID = (24, 24, 9)


def small(prefix=PREFIX):
    """Return a graph with a residual block, a strided convolution and a dense tail; 5 -> 8 -> 16 channels."""
    builder = Builder(SMALL_GRID, prefix)
    builder.convolution('conv_input.0', 'conv_input.1', 5, 8)
    builder.block('block.0', 8)
    builder.convolution('down.0', 'down.1', 8, 16, stride=(2, 2, 2))
    return fold(builder.dense(16), 'fp32')


class Builder:
    """Nodes one after the other; `tensor` and `shape` are where it is."""

    def __init__(self, grid, prefix=PREFIX, in_channels=5):
        self.grid, self.shape, self.prefix, self.in_channels = tuple(grid), tuple(grid), prefix, in_channels
        self.nodes, self.tensor = [], '0'

    def add(self, kind, module, inputs, *values):
        output = str(len(self.nodes) + 1)
        self.nodes.append(kind(f'{kind.op_type}{output}', module, inputs, output, *values))
        self.tensor = output

    def parameters(self, path, **shapes):
        keys = {f'{path}.{name}': shape for name, shape in shapes.items()}
        return list(seeded.sparse_weights(keys, self.prefix).values())

    def convolution(
        self,
        path,
        norm,
        inputs,
        outputs,
        kernel=(3, 3, 3),
        stride=None,
        padding=(1, 1, 1),
        dilation=(1, 1, 1),
        relu=True,
    ):
        """A strided convolution where a stride is given, else a submanifold one; then norm and ReLU."""
        (weight,) = self.parameters(path, weight=(*kernel, inputs, outputs))
        before, subm = self.shape, stride is None
        if not subm:
            self.shape = dense_output_shape(before, kernel, stride, padding, dilation)
        self.add(
            SparseConvolution,
            path,
            (self.tensor,),
            np.ascontiguousarray(weight.transpose(4, 0, 1, 2, 3)),
            None,
            kernel,
            stride or (1, 1, 1),
            padding,
            dilation,
            (0, 0, 0),
            subm,
            before,
            self.shape,
        )
        if norm:
            names = dict.fromkeys(('weight', 'bias', 'running_mean', 'running_var'), (outputs,))
            self.add(BatchNorm, norm, (self.tensor,), *self.parameters(norm, **names), EPS)
        if relu:
            self.add(Relu, f'{path}.relu', (self.tensor,))

    def block(self, path, width):
        """A basic block."""
        identity = self.tensor
        self.convolution(f'{path}.conv1', f'{path}.bn1', width, width)
        self.convolution(f'{path}.conv2', f'{path}.bn2', width, width, relu=False)
        self.add(Add, path, (self.tensor, identity))
        self.add(Relu, f'{path}.relu', (self.tensor,))

    def dense(self, channels):
        """The dense tail of xyz: (1, C, X, Y, Z) -> (1, C*Z, X, Y)."""
        a, b, c = self.shape
        self.add(ScatterDense, '', (self.tensor,), self.shape, (1, channels, a, b, c))
        self.add(Transpose, '', (self.tensor,), (0, 1, 4, 2, 3))
        self.add(Reshape, '', (self.tensor,), (1, channels * c, a, b))
        return self.graph((1, channels * c, a, b))

    def graph(self, output_shape):
        """What was built so far."""
        return renumber(
            SparseGraph(
                tuple(self.nodes), 'xyz', self.grid, self.in_channels, self.tensor, tuple(output_shape)
            )
        )


def node(graph, name):
    """Return a node by its name."""
    return next(node for node in graph.nodes if node.name == name)


def voxels(grid=GRID, rows=200, seed=0, channels=5):
    """(N, 5) float32 and (N, 4) int32: the corners, then voxels in clusters, no duplicates, in no order."""
    rng = np.random.default_rng(seed)
    size = np.array(grid)
    corners = np.stack(np.meshgrid(*[(0, limit - 1) for limit in grid], indexing='ij'), -1).reshape(-1, 3)
    seeds = np.stack([rng.integers(0, limit, max(rows // 4, 1)) for limit in grid], 1)
    near = np.clip(seeds[:, None] + rng.integers(-1, 2, (len(seeds), 8, 3)), 0, size - 1).reshape(-1, 3)
    every = np.concatenate([corners, near])[: max(3 * rows, 8)]
    sites = rng.permutation(np.unique(every, axis=0))[:rows]
    coordinates = np.pad(sites, ((0, 0), (1, 0))).astype(np.int32)
    return rng.standard_normal((len(sites), channels)).astype(np.float32), coordinates


def golden(name):
    """Features (N, 5) float32, coordinates (N, 4) int32 of a golden input, or None where it is not."""
    import scn_goldens

    return scn_goldens.voxels(name) if scn_goldens.find(f'numeric/{name}.npz') else None


def dense_reference(graph, coordinates, features):
    """Every tensor of the graph by dense convolution in float64: id -> (1, C, d0, d1, d2), or the dense map.

    Independent of every rulebook: a strided convolution is active where a convolution of ones reaches a site.
    """
    import torch

    mask = torch.zeros(1, 1, *graph.spatial_shape, dtype=torch.float64)
    dense = torch.zeros(1, graph.in_channels, *graph.spatial_shape, dtype=torch.float64)
    a, b, c = torch.from_numpy(np.asarray(coordinates, np.int64)[:, 1:]).T
    mask[0, 0, a, b, c] = 1
    dense[0][:, a, b, c] = torch.from_numpy(np.asarray(features, np.float64)).T
    values, masks = {'0': dense}, {'0': mask}
    for node in graph.nodes:
        inputs, active = [values[name] for name in node.inputs], masks.get(node.inputs[0])
        if isinstance(node, SparseConvolution):
            result, active = _dense_convolution(node, inputs[0], active)
        else:
            result = _dense_node(node, inputs)
        if active is None or isinstance(node, ScatterDense):
            values[node.output] = result
        else:
            values[node.output], masks[node.output] = result * active, active
    return {name: value.numpy() for name, value in values.items()}


def _dense_convolution(node, dense, active):
    import torch
    from torch.nn import functional

    weight = torch.from_numpy(np.asarray(node.weight, np.float64).transpose(0, 4, 1, 2, 3).copy())
    bias = None if node.bias is None else torch.from_numpy(np.asarray(node.bias, np.float64))
    geometry = dict(stride=node.stride, padding=node.padding, dilation=node.dilation)
    if node.subm:
        sizes = zip(node.kernel_size, node.dilation, strict=True)
        geometry['padding'] = tuple(size // 2 * dil for size, dil in sizes)
    else:
        active = functional.conv3d(active, torch.ones(1, 1, *node.kernel_size).double(), **geometry)
        active = (active > 0.5).double()
    result = functional.conv3d(dense, weight, bias, **geometry)
    return (torch.relu(result) if node.activation == 'ReLU' else result), active


def _dense_node(node, inputs):
    import torch

    if isinstance(node, BatchNorm):
        parameters = (node.gamma, node.beta, node.mean, node.var)
        gamma, beta, mean, var = (
            torch.from_numpy(values).double().view(1, -1, 1, 1, 1) for values in parameters
        )
        return (inputs[0] - mean) / (var + node.eps).sqrt() * gamma + beta
    rules = {
        Add: lambda: inputs[0] + inputs[1],
        Relu: lambda: torch.relu(inputs[0]),
        ScatterDense: lambda: inputs[0],
        Transpose: lambda: inputs[0].permute(node.dims),
        Reshape: lambda: inputs[0].reshape(node.dims),
    }
    return rules[type(node)]()
