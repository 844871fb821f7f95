"""Nodes that TensorRT cannot take, found before a build.

Measured on tensorrt-rtx 1.7.1 (parser and builder, no GPU). Measured to build: axes of size 0, int64 and bool
inputs and outputs, ScatterND without a reduction, GridSample, Mod, Einsum, If.
"""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from mmdeploy_ext.base.commands import command, tool
from mmdeploy_ext.base.errors import EngineError
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.files import DEFAULT_DOMAINS, check_ordinary
from mmdeploy_ext.graphs.io.index import all_graphs, constant_value, join_names, opsets_of
from mmdeploy_ext.graphs.passes import deform_conv, roi_align
from mmdeploy_ext.spec.metadata import PREFIX, read_entry
from mmdeploy_ext.spec.options import LARGEST_K, LIMITS
from mmdeploy_ext.spec.registry import registration_of

TURING = 75
NO_TURING = (
    'TensorRT-RTX has no float32 matrix products there; omit 75, or build with --fp16 (without '
    '--keep-fp32 for these nodes)'
)
INTEGERS = frozenset(map(TensorProto.DataType.Value, ('INT32', 'INT64', 'BOOL', 'UINT8')))
_OTHERS = ('FLOAT', 'FLOAT16', 'BFLOAT16', 'INT8', 'INT4', 'FLOAT8E4M3FN', 'DOUBLE')
SUPPORTED_TYPES = INTEGERS.union(map(TensorProto.DataType.Value, _OTHERS))
"""Element types of tensors; DOUBLE is computed in float32 and refused as input or output."""
CONSTANT_SHAPES = (
    'export full with --max-candidates K and a fixed --shape (also --max-proposals K if proposals are '
    'suppressed), or raw or decode'
)
RTX_OPERATORS = {
    'NonMaxSuppression': 'has no runner in TensorRT-RTX; {form}, or build with --package tensorrt',
    'NonZero': 'has no plugin in TensorRT-RTX; {form}, or build with --package tensorrt',
}
"""Operator that only TensorRT-RTX lacks -> reason and advice."""
REWRITTEN = {
    'DeformConv': 'is not parsed by TensorRT-RTX, and becomes GridSample and Conv with a weight of known '
    'shape in float32 or float16 alone, outside of sub-graphs; build with --package tensorrt',
    'RoiAlign': "has no plugin in TensorRT-RTX, and becomes gathers in mode 'avg' alone, from opset 16 on "
    'and outside of sub-graphs',
}
"""Operator that a build for TensorRT-RTX rewrites -> reason where it cannot."""
FLOAT_ONLY = {
    **dict.fromkeys(('MatMul', 'Gemm'), 'multiplies only floats; cast its operands to float32'),
    'Conv': 'takes only floats; cast its operands to float32',
    'Resize': 'resizes only floats; cast its input to float32',
    'GridSample': 'samples only floats; cast its input to float32',
}
"""Operator that takes only floats -> reason and advice."""
CODES = 'but TensorRT takes int8 with zero point 0 alone; write INT8 with {precision} --to int8'
READ_VALUES = dict(Split=1, TopK=1, QuantizeLinear=2, DequantizeLinear=2)
"""Operator -> place of the input whose values its rules read."""
NO_OPERATOR = 'TensorRT has no such operator; rewrite it in others ({graph} replace)'
_UNKNOWN_OPERATORS = """
AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im
Compress ConcatFromSequence ConvInteger CumProd DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger
MaxRoiPool MaxUnpool Multinomial MelWeightMatrix NegativeLogLikelihoodLoss Optional OptionalGetElement
OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty
SequenceErase SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat
StringNormalizer StringSplit SwiGLU TfIdfVectorizer Unique
"""
UNSUPPORTED = dict.fromkeys(_UNKNOWN_OPERATORS.split(), NO_OPERATOR)
"""Operator of onnx 1.23.2 that the parser of tensorrt-rtx 1.7.1 does not know -> advice."""
UNSUPPORTED['MatMulInteger'] = (
    'TensorRT has no integer products; for masks in form full, export with a constant number of '
    'candidates (--max-candidates K), or with --postprocess raw'
)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A node, input or output that TensorRT cannot take; `node` is '#12' by position without a name."""

    node: str
    operator: str
    reason: str


def find_refusals(model: onnx.ModelProto, *, rtx: bool) -> list[Refusal]:
    """Find inputs, outputs and nodes, also in bodies and functions, that TensorRT cannot take."""
    check_ordinary(model)
    refusals = []
    for side, values in (('input', model.graph.input), ('output', model.graph.output)):
        for value in values:
            element = value.type.tensor_type.elem_type
            if element not in SUPPORTED_TYPES or element == TensorProto.DOUBLE:
                takes = 'TensorRT supports float32, float16, int32, int64, bool, uint8'
                reason = f'{side} of type {types.dtype(element)}; {takes}'
                refusals.append(Refusal(value.name, '', f'{reason}: cast it outside of the graph'))
    rules = _Rules(model, rtx)
    for graph in all_graphs(model):
        for place, node in enumerate(graph.node):
            if reason := rules.reason(node):
                refusals.append(Refusal(node.name or f'#{place}', node.op_type, reason))
    return refusals


def check_limits(model: onnx.ModelProto, *, rtx: bool, file: str) -> None:
    """Raise EngineError for a graph that TensorRT cannot take, with up to three nodes per reason."""
    refusals = find_refusals(model, rtx=rtx)
    if refusals:
        title = 'TensorRT-RTX' if rtx else 'TensorRT'
        nodes = sum(bool(refusal.operator) for refusal in refusals)
        tensors = len(refusals) - nodes
        counts = ['1 node' if nodes == 1 else f'{nodes} nodes'] if nodes else []
        if tensors:
            counts.append('1 input or output' if tensors == 1 else f'{tensors} inputs or outputs')
        reasons = _listed_by_reason(refusals)
        raise EngineError(f'{file}: {title} does not support {" and ".join(counts)}: {reasons}')


def check_turing(model: onnx.ModelProto, architectures: Collection[int], file: str) -> None:
    """Raise EngineError for float32 matrix products on SM 7.5, which tensorrt-rtx 1.7.1 does not compile."""
    if TURING not in architectures:
        return
    elements = {name: value.tensor_type.elem_type for name, value in types.infer(model).items()}
    refusals = [
        Refusal(node.name or f'#{place}', node.op_type, NO_TURING)
        for place, node in enumerate(model.graph.node)
        if node.op_type in ('MatMul', 'Gemm', 'Einsum') and elements.get(node.input[0]) == TensorProto.FLOAT
    ]
    if refusals:
        raise EngineError(f'{file}: SM {TURING} is asked for: {_listed_by_reason(refusals)}')


def _listed_by_reason(refusals: Sequence[Refusal]) -> str:
    groups: dict[tuple[str, str], list[str]] = {}
    for refusal in refusals:
        groups.setdefault((refusal.operator, refusal.reason), []).append(refusal.node)
    return '; '.join(
        f'{join_names(nodes, 3)}{f" ({operator})" if operator else ""}: {reason}'
        for (operator, reason), nodes in groups.items()
    )


class _Rules:
    def __init__(self, model: onnx.ModelProto, rtx: bool) -> None:
        self.rtx = rtx
        self.form = CONSTANT_SHAPES
        props = {entry.key: entry.value for entry in model.metadata_props}
        if f'{PREFIX}family' in props:
            family = read_entry(props, 'family', 'the file')
            if not any(option.name in LIMITS for option in registration_of(family).options):
                self.form = f'the family {family} has no form with constant shapes'
        self.types = types.infer(model)
        opset = opsets_of(model).get('', 0)
        self.rewritten = {
            node.output[0]
            for node in model.graph.node
            if roi_align.is_replaced(node, opset) or deform_conv.is_replaced(node, self.types)
        }
        slim = types.skeleton(model)
        types.fold_shapes(slim, self.types)
        self.constants: dict[str, np.ndarray] = {}
        graphs = list(all_graphs(slim))
        read = {
            name
            for graph in graphs
            for node in graph.node
            if node.op_type in READ_VALUES
            for name in node.input[READ_VALUES[node.op_type] :][:1]
        }
        for graph in graphs:
            for tensor in getattr(graph, 'initializer', ()):  # a function has none
                has_values = tensor.raw_data or tensor.int64_data or tensor.int32_data or tensor.float_data
                if tensor.name in read and has_values:
                    self.constants[tensor.name] = numpy_helper.to_array(tensor)
            for node in graph.node:
                value = constant_value(node) if read.intersection(node.output) else None
                if value is not None:
                    self.constants[node.output[0]] = value

    def reason(self, node: onnx.NodeProto) -> str:
        operator = node.op_type
        if node.domain not in DEFAULT_DOMAINS:
            return (
                f'is of domain {node.domain!r}, for which there is no plugin; export it in standard operators'
            )
        if self.rtx and operator in RTX_OPERATORS:
            return RTX_OPERATORS[operator].format(form=self.form)
        if operator in UNSUPPORTED:
            return UNSUPPORTED[operator].format(graph=tool('graph'))
        if self.rtx and operator in REWRITTEN and node.output[0] not in self.rewritten:
            return REWRITTEN[operator]
        return self._attribute_reason(node) or self._type_reason(node)

    def _attribute_reason(self, node: onnx.NodeProto) -> str:
        operator = node.op_type
        if operator == 'TopK':  # before opset 10 K is an attribute
            k = next((entry.i for entry in node.attribute if entry.name == 'k'), 0)
            counts = [self.constants[name] for name in node.input[1:2] if name in self.constants]
            k = int(counts[0].ravel()[0]) if counts else k
            if k > LARGEST_K:
                return (
                    f'K={k}, but TensorRT sorts at most {LARGEST_K}: export with --for tensorrt, with a '
                    'smaller --max-candidates, nms_pre or max_per_img of test_cfg, or another form'
                )
        if operator == 'Split' and any(node.input[1:]) and node.input[1] not in self.constants:
            return (
                'splits by lengths that are known only at run time, but the builder needs their values; '
                'split by constants (a sparse backbone: pytorch2onnx.py --sparse-form tables, '
                'export_scn.py --form tables)'
            )
        if operator in ('ScatterElements', 'ScatterND'):
            for attribute in node.attribute:
                if attribute.name == 'reduction' and attribute.s != b'none':
                    reduction = attribute.s.decode()
                    return f'reduction={reduction!r} is not supported; scatter without a reduction'
        return ''

    def _type_reason(self, node: onnx.NodeProto) -> str:
        operator = node.op_type
        first = self._element(next(iter(node.input), ''))
        if operator in ('ReduceMax', 'ReduceMin') and first == TensorProto.BOOL:
            return 'reduces bool; cast its input to int32'
        if operator in FLOAT_ONLY and first in INTEGERS:
            return FLOAT_ONLY[operator]
        if operator in ('QuantizeLinear', 'DequantizeLinear'):
            codes = first if operator == 'DequantizeLinear' else self._element(node.output[0])
            if codes in INTEGERS:
                return f'has codes of {types.dtype(codes)}, {CODES.format(precision=command("precision"))}'
            if any(np.any(self.constants.get(name, 0)) for name in node.input[2:3]):
                return f'has a zero point other than 0, {CODES.format(precision=command("precision"))}'
        for name in node.output:
            element = self._element(name)
            if element and element not in SUPPORTED_TYPES:
                kind = types.dtype(element)
                return (
                    f'returns {name!r} of type {kind}, which TensorRT does not support; cast to another type'
                )
        if operator != 'Cast' and first == TensorProto.UINT8:
            return 'computes on uint8, which TensorRT can only cast; cast the input to float32 first'
        return ''

    def _element(self, name: str) -> int:
        tensor_type = self.types.get(name)
        if tensor_type is None or not tensor_type.HasField('tensor_type'):
            return 0
        return tensor_type.tensor_type.elem_type
