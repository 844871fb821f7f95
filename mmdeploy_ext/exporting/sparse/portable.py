"""A sparse graph as ONNX of standard operators. Needs no torch.

`rulebook.build` turns coordinates into lists of rows, inputs beside the voxel features; a row of zeros stands
for a missing neighbour. 'buckets' (default): rows sorted by neighbours (`runtime/sparse/buckets.py`), for
ONNX Runtime and OpenVINO. 'tables': neighbour tables (M, K), half to nine tenths zeros, but no Split by
run-time lengths, which TensorRT lacks.

Measured on ONNX Runtime 1.31, one thread, the goldens' sweep, ms per submanifold convolution of 16 / 32 / 64
/ 128 channels: tables 9.7 / 28 / 54 / 107; MatMul and ScatterND(add) per offset 2.3 / 15 / 34 / 64; buckets
1.9 / 12 / 28 / 61 (strided 4 / 10 / 19 / 6, by tables 20 / 30 / 54 / 11).

N voxels, M output sites, K kernel offsets, C, I, O channels, G groups, B buckets of a group, s offsets of a
bucket, S of all buckets, L input rows of all buckets, H, W bird's-eye view.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.base.errors import ExportError, UsageError
from mmdeploy_ext.exporting.sparse.libspconv import NodeWriter
from mmdeploy_ext.runtime.sparse import ir
from mmdeploy_ext.runtime.sparse.buckets import BEV, FACTS, FORMS, VOXELS, Layout
from mmdeploy_ext.runtime.sparse.ir import SparseConvolution, SparseGraph
from mmdeploy_ext.runtime.sparse.plan import PortableFacts, Table, plan_of

DEFAULT_OPSET = 17
LEAST_OPSET = 13  # the first with a Split that takes lengths as an input
GROUP_COLUMNS = 1152  # values that the form 'tables' gathers at once per output row: 9 offsets, 128 channels


def to_onnx(
    graph: SparseGraph,
    *,
    form: str = 'buckets',
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """A folded graph as ONNX of standard operators; float16 weights are computed in float32.

    Inputs: 'voxels' (N, C) float32 and `buckets.feeds`. Output: 'bev' (1, C, H, W) float32. `form` is
    'buckets' or 'tables', `opset` 13 or later; the runtime's facts are added to `metadata`.
    """
    if form not in FORMS:
        raise UsageError(f'form={form!r} is unknown; expected one of {", ".join(FORMS)}')
    if opset < LEAST_OPSET:
        raise UsageError(f'opset={opset}: the portable form needs opset {LEAST_OPSET} or later')
    writer = _Writer(graph, form)
    model = writer.model(opset)
    facts = PortableFacts(form, graph.order, graph.in_channels, graph.output_shape, writer.plan).to_json()
    helper.set_model_props(model, {**(metadata or {}), FACTS: json.dumps(facts)})
    onnx.checker.check_model(model, full_check=True)
    return model


class _Writer(NodeWriter):
    def __init__(self, graph: SparseGraph, form: str) -> None:
        super().__init__()
        self.graph, self.form = graph, form
        self.plan = plan_of(graph)
        self.tables = {table.name: table for table in self.plan.tables}
        self.input(VOXELS, TensorProto.FLOAT, 'N', graph.in_channels)
        self.tensors = {'0': VOXELS}

    def model(self, opset: int) -> onnx.ModelProto:
        for table in self.plan.tables:
            self.table_inputs(table)
        if self.form == 'buckets':  # here every sparse tensor keeps its row of zeros
            self.tensors['0'] = self._with_zeros(VOXELS, self.graph.in_channels)
        for node in self.graph.nodes:
            self._node(node)
        self.op('Identity', [self.tensors[self.graph.output]], BEV)
        output = helper.make_tensor_value_info(BEV, TensorProto.FLOAT, list(self.graph.output_shape))
        graph = helper.make_graph(self.nodes, 'scn', self.inputs, [output], list(self.initializers.values()))
        versions = dict(opset_imports=[helper.make_opsetid('', opset)], ir_version=8 if opset < 19 else 9)
        return helper.make_model(graph, producer_name='mm2onnx', **versions)

    def table_inputs(self, table: Table) -> None:
        """Declare the inputs of a table.

        'tables': NAME.table (M, K) int32. 'buckets': NAME.rows (L) int32, NAME.lengths (G*B) int64,
        NAME.offsets (S) int32, NAME.sizes (G*B, 1) int64, NAME.position0.. (M+1) int32.
        """
        name, level = table.name, f'M{table.level_out}'
        if self.form == 'tables':
            self.input(f'{name}.table', TensorProto.INT32, level, math.prod(table.kernel_size))
            return
        layout = Layout.of(table.kernel_size)
        buckets = len(layout.groups) * layout.buckets
        self.input(f'{name}.rows', TensorProto.INT32, f'{name}.L')
        self.input(f'{name}.lengths', TensorProto.INT64, buckets)
        self.input(f'{name}.offsets', TensorProto.INT32, f'{name}.S')
        self.input(f'{name}.sizes', TensorProto.INT64, buckets, 1)
        for group in range(len(layout.groups)):
            self.input(f'{name}.position{group}', TensorProto.INT32, f'{level}+1')
        self.split(f'{name}.rows', f'{name}.lengths', buckets)

    def _row_shapes(self, table: Table, channels: int, buckets: int) -> str:
        name = f'{table.name}.shape{channels}'
        if self.is_first_use(name):
            wide = self.op('Mul', [f'{table.name}.sizes', self.integers(0, channels)], f'{name}.wide')
            pairs = self.op('Add', [wide, self.integers(-1, 0)], f'{name}.pairs')
            flat = self.op('Reshape', [pairs, self.integers(-1)], name)
            self.split(flat, self.integers(*[2] * buckets), buckets)
        return name

    def _with_zeros(self, source: str, channels: int) -> str:
        name = f'{source}.padded'
        if self.is_first_use(name):
            zero = self.constant(f'zero.{channels}', np.zeros((1, channels), np.float32))
            self.op('Concat', [source, zero], name, axis=0)
        return name

    def _node(self, node: ir.Node) -> None:
        name, inputs = f'{node.name}.out', [self.tensors.get(tensor, tensor) for tensor in node.inputs]
        if isinstance(node, ir.SparseConvolution):
            self._convolution(node, inputs[0], name)
        elif isinstance(node, ir.Add | ir.Relu):
            self.op(node.op_type, inputs, name)
        elif isinstance(node, ir.ScatterDense):
            self._scatter(node, inputs[0], name)
        elif isinstance(node, ir.Transpose):
            reordered = {scatter.name for scatter in self.plan.scatters if scatter.axes != (0, 1, 2)}
            producers = [producer.name for producer in self.graph.nodes if producer.output == node.inputs[0]]
            if reordered & set(producers):  # its scatter numbers the cells in the new order already
                self.op('Identity', inputs, name)
            else:
                self.op('Transpose', inputs, name, perm=list(node.dims))
        elif isinstance(node, ir.Reshape):
            self.op('Reshape', [inputs[0], self.integers(*node.dims)], name)
        else:
            raise ExportError(
                f'{node.name} ({node.module}): {node.op_type} has no portable form; fold the graph first'
            )
        self.tensors[node.output] = name

    def _convolution(self, node: SparseConvolution, source: str, output: str) -> None:
        table = self.tables[self.plan.table_of[node.name]]
        weight = np.asarray(node.weight, np.float32).transpose(1, 2, 3, 4, 0)
        weight = weight.reshape(-1, node.in_channels, node.out_channels)
        self.constant(f'{node.name}.bias', _bias(node))
        write = self._by_tables if self.form == 'tables' else self._by_buckets
        if node.activation == 'ReLU':
            write(node, table, weight, source, f'{node.name}.sum')
            self.op('Relu', [f'{node.name}.sum'], output)
        else:
            write(node, table, weight, source, output)

    def _by_buckets(
        self, node: SparseConvolution, table: Table, weight: np.ndarray, source: str, output: str
    ) -> None:
        layout = Layout.of(table.kernel_size)
        buckets = len(layout.groups) * layout.buckets
        kernels = self._kernels(node, table, weight, buckets)
        shapes = self._row_shapes(table, node.in_channels, buckets)
        zero = self.constant(f'zero.{node.out_channels}', np.zeros((1, node.out_channels), np.float32))
        total = ''
        for group in range(len(layout.groups)):
            name, adds_bias, parts = f'{node.name}.group{group}', group == layout.bias_group, []
            for piece in range(group * layout.buckets, (group + 1) * layout.buckets):
                bucket = f'{node.name}.bucket{piece}'
                rows = self.op('Gather', [source, f'{table.name}.rows.{piece}'], f'{bucket}.rows')
                flat = self.op('Reshape', [rows, f'{shapes}.{piece}'], f'{bucket}.flat')
                factors = [flat, f'{kernels}.{piece}']
                if adds_bias:
                    factors.append(f'{node.name}.bias')
                parts.append(self.op('Gemm' if adds_bias else 'MatMul', factors, f'{bucket}.product'))
            if adds_bias:
                parts.append(self.constant(f'{node.name}.bias_row', _bias(node)[None]))
            parts.append(zero)
            rows = self.op('Concat', parts, f'{name}.rows', axis=0)
            last = group == len(layout.groups) - 1
            ordered = output if last and not total else f'{name}.ordered'
            self.op('Gather', [rows, f'{table.name}.position{group}'], ordered)
            total = self.op('Add', [total, ordered], output if last else f'{name}.sum') if total else ordered

    def _kernels(self, node: SparseConvolution, table: Table, weight: np.ndarray, buckets: int) -> str:
        offsets = self.constant(f'{node.name}.weight', weight)
        weights = self.op('Gather', [offsets, f'{table.name}.offsets'], f'{node.name}.weights')
        flat = self.op('Reshape', [weights, self.integers(-1, node.out_channels)], f'{node.name}.kernels')
        lengths = f'{table.name}.kernel_rows{node.in_channels}'
        if self.is_first_use(lengths):
            wide = self.op('Mul', [f'{table.name}.sizes', self.integers(node.in_channels)], f'{lengths}.wide')
            self.op('Reshape', [wide, self.integers(-1)], lengths)
        self.split(flat, lengths, buckets)
        return flat

    def _by_tables(
        self, node: SparseConvolution, table: Table, weight: np.ndarray, source: str, output: str
    ) -> None:
        name, offset_count = node.name, len(weight)
        padded = self._with_zeros(source, node.in_channels)
        step = max(1, GROUP_COLUMNS // node.in_channels)
        total = f'{name}.bias'
        for start in range(0, offset_count, step):
            end = min(start + step, offset_count)
            group = f'{name}.group{start}'
            rows = f'{table.name}.table'
            if end - start < offset_count:
                rows = f'{table.name}.columns.{start}_{end}'
                if self.is_first_use(rows):
                    limits = [self.integers(start), self.integers(end), self.integers(1)]
                    self.op('Slice', [f'{table.name}.table', *limits], rows)
            gathered = self.op('Gather', [padded, rows], f'{group}.rows')
            shape = self.integers(-1, (end - start) * node.in_channels)
            flat = self.op('Reshape', [gathered, shape], f'{group}.flat')
            kernel = weight[start:end].reshape(-1, node.out_channels)
            kernel = self.constant(f'{name}.weight.{start}', kernel)
            name_of_sum = output if end == offset_count else f'{group}.sum'
            total = self.op('Gemm', [flat, kernel, total], name_of_sum)

    def _scatter(self, node: ir.ScatterDense, source: str, output: str) -> None:
        """Write (C, cells) by ScatterElements: in ONNX Runtime half the time of ScatterND and a Transpose."""
        scatter = next(scatter for scatter in self.plan.scatters if scatter.name == node.name)
        name, channels = node.name, node.output_shape[1]
        cells = self.input(f'{name}.cells', TensorProto.INT64, f'M{scatter.level}')
        sites = source
        if self.form == 'buckets':
            sites = f'{source}.sites'
            if self.is_first_use(sites):  # without the row of zeros
                self.op('Slice', [source, self.integers(0), self.integers(-1), self.integers(0)], sites)
        columns = self.op('Transpose', [sites], f'{name}.columns', perm=[1, 0])
        shape = self.op('Shape', [columns], f'{name}.shape')
        index = self.op('Expand', [cells, shape], f'{name}.index')
        empty = numpy_helper.from_array(np.zeros(1, np.float32))
        size = self.integers(channels, math.prod(node.spatial_shape))
        zeros = self.op('ConstantOfShape', [size], f'{name}.zeros', value=empty)
        dense = self.op('ScatterElements', [zeros, index, columns], f'{name}.dense', axis=1)
        grid = [node.spatial_shape[axis] for axis in scatter.axes]
        self.op('Reshape', [dense, self.integers(1, channels, *grid)], output)


def _bias(node: SparseConvolution) -> np.ndarray:
    return np.asarray(np.zeros(node.out_channels) if node.bias is None else node.bias, np.float32)
