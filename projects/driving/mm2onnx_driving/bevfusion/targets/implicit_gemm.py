"""Writer of the sparse graph for Autoware's plug-ins of spconv: pairs of sites, and products over them.

Two operators of the domain `autoware` beside standard ones; weights are (O, k0, k1, k2, I) float32. V voxels,
C, I, O channels; H, W of the bird's-eye view; d0, d1, d2 sizes of the grid.

Source: autoware_universe 5e12a711, autoware_tensorrt_plugins (names, inputs, outputs, attributes; facts, no
code); spconv 2.3.8, `core.ConvAlgo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.runtime.sparse.ir import Add, Relu, Reshape, ScatterDense, SparseConvolution, Transpose

if TYPE_CHECKING:
    from mmdeploy_ext.exporting.sparse.libspconv import NodeWriter
    from mmdeploy_ext.runtime.sparse.ir import SparseGraph

DOMAIN, VERSION = 'autoware', 1
PAIRS, PRODUCTS = 'GetIndicePairsImplicitGemm', 'ImplicitGemm'
ONE_MASK = 1
"""`ConvAlgo.MaskImplicitGemm`: one mask per site."""


class ImplicitGemm:
    """Writes the nodes of one sparse graph into an ONNX graph; call `write` once."""

    def __init__(self, graph: SparseGraph, writer: NodeWriter) -> None:
        """The graph is folded, with rulebooks by `plan.name_rulebooks`."""
        self.graph, self.writer = graph, writer
        self._values: dict[str, str] = {}  # tensor id of the graph -> name of its values
        self._sites: dict[str, str] = {}  # tensor id of the graph -> name of its sites
        self._pairs: dict[tuple[str, str], list[str]] = {}  # see `_pairs_of`

    def write(self, sites: str, features: str) -> str:
        """Add all nodes; return the name of the result, (1, C, H, W) float32.

        `sites` names (V, 4) int32, sample 0 and axes in the graph's order; `features` (V, C) float32.
        ExportError: a node that the plug-ins lack.
        """
        self._values['0'], self._sites['0'] = features, sites
        for node in self.graph.nodes:
            inputs = [self._values[name] for name in node.inputs]
            self._sites[node.output] = self._sites[node.inputs[0]]
            name, op = f'sparse/{node.name}', self.writer.op
            if isinstance(node, SparseConvolution):
                output = self._convolution(node, inputs[0], name)
            elif isinstance(node, Add) and len({self._sites[tensor] for tensor in node.inputs}) > 1:
                raise ExportError(
                    f'{node.name} ({node.module}): adds tensors of two convolutions that create their own '
                    'sites; the plug-ins can return them in different orders'
                )
            elif isinstance(node, Add | Relu):
                output = op(node.op_type, inputs, name)
            elif isinstance(node, ScatterDense):
                output = self._scatter(node, inputs[0], name)
            elif isinstance(node, Transpose):
                output = op('Transpose', inputs, name, perm=list(node.dims))
            elif isinstance(node, Reshape):
                output = op('Reshape', [*inputs, self.writer.integers(*node.dims)], name)
            else:
                raise ExportError(
                    f'{node.name} ({node.module}): {node.op_type} is not folded; fold the graph'
                )
            self._values[node.output] = output
        return self._values[self.graph.output]

    def _convolution(self, node: SparseConvolution, features: str, name: str) -> str:
        if node.inverse or node.transposed or node.groups != 1:
            raise ExportError(
                f'{node.name} ({node.module}): an inverse, transposed or grouped convolution, which the '
                f'plug-ins of Autoware do not have'
            )
        sites, *pairs = self._pairs_of(node, name)
        self._sites[node.output] = sites
        weight = self.writer.constant(f'{name}.weight', np.float32(node.weight))
        is_last = node.bias is None and node.activation == 'None'
        output = self.writer.op(
            PRODUCTS,
            [features, weight, *pairs],
            name if is_last else f'{name}.product',
            domain=DOMAIN,
            act_alpha=0.0,
            act_beta=0.0,
            output_add_scale=0.0,
            output_scale=1.0,
            is_subm=int(node.subm),
            is_train=0,
        )
        if node.bias is not None:
            bias = self.writer.constant(f'{name}.bias', np.float32(node.bias))
            is_last = node.activation == 'None'
            output = self.writer.op('Add', [output, bias], name if is_last else f'{name}.sum')
        return output if node.activation == 'None' else self.writer.op('Relu', [output], name)

    def _pairs_of(self, node: SparseConvolution, name: str) -> list[str]:
        sites = self._sites[node.inputs[0]]
        key = sites, (node.rulebook or name) if node.subm else name
        if key not in self._pairs:
            triples = dict(
                ksize=node.kernel_size,
                stride=node.stride,
                padding=node.padding,
                dilation=node.dilation,
                out_padding=node.output_padding,
                spatial_shape=node.input_spatial_shape,
            )
            outputs = [f'{name}.{part}' for part in ('sites', 'pairs', 'masks', 'order', 'count')]
            self.writer.op(
                PAIRS,
                [sites],
                outputs,
                domain=DOMAIN,
                algo=ONE_MASK,
                batch_size=1,
                is_train=0,
                subm=int(node.subm),
                transpose=0,
                do_sort=1,  # the plug-in's default, which nodes since pull request 12631 want to be stated
                **{name: [int(value) for value in triple] for name, triple in triples.items()},
            )
            self._pairs[key] = outputs[:4]
        pairs = self._pairs[key]
        return [sites, *pairs[1:]] if node.subm else pairs

    def _scatter(self, node: ScatterDense, features: str, name: str) -> str:
        op, integers = self.writer.op, self.writer.integers
        channels = node.output_shape[1]
        shape = integers(*node.spatial_shape, channels)
        zeros = op('ConstantOfShape', [shape], f'{name}.zeros')
        wide = op('Cast', [self._sites[node.inputs[0]]], f'{name}.wide', to=TensorProto.INT64)
        places = op('Slice', [wide, integers(1), integers(4), integers(1)], f'{name}.places')
        filled = op('ScatterND', [zeros, places, features], f'{name}.filled')
        first = op('Transpose', [filled], f'{name}.first', perm=[3, 0, 1, 2])
        return op('Reshape', [first, integers(*node.output_shape)], name)
