"""What TensorRT cannot take of a graph, by node name, before anything is built. Needs onnx only.

Measured on tensorrt-rtx 1.7.1 (parser and builder, no GPU). Not refused, because measured to build: tensors
with an axis of size 0, int64 and bool inputs and outputs, ScatterND, GridSample, Mod, Einsum, If.
"""

import dataclasses
from collections.abc import Collection, Sequence

import onnx
from onnx import TensorProto, numpy_helper

from mmdeploy_ext.contract.metadata_entries import PREFIX, read_entry
from mmdeploy_ext.contract.options import LIMITS
from mmdeploy_ext.contract.registry import options_of
from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import EngineError
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.checks import DEFAULT_DOMAINS, check_ordinary
from mmdeploy_ext.graph.io.index import all_graphs, join_names
from mmdeploy_ext.graph.io.operators import opsets_of
from mmdeploy_ext.graph.io.types import fold_shapes
from mmdeploy_ext.graph.passes.roi_align import is_replaced

TURING = 75
NO_TURING = (
    'TensorRT-RTX has no matrix products of float32 there; leave 75 out, or build with --fp16 (and without '
    '--keep-fp32 for these)'
)
LARGEST_K = 3840
"""Of TopK."""
INTEGERS = frozenset(map(TensorProto.DataType.Value, ('INT32', 'INT64', 'BOOL', 'UINT8')))
_OTHERS = ('FLOAT', 'FLOAT16', 'BFLOAT16', 'INT8', 'INT4', 'FLOAT8E4M3FN', 'DOUBLE')
TAKEN = INTEGERS.union(map(TensorProto.DataType.Value, _OTHERS))
"""Element types that tensors may have; DOUBLE is computed in float32, and refused as input or output."""
CONSTANT_SHAPES = (
    'export full with --max-candidates K and a fixed --shape (--max-proposals K, too, where proposals are '
    'suppressed), or raw or decode'
)
RTX_OPERATORS = {
    'NonMaxSuppression': 'has no runner in TensorRT-RTX; {form}, or build with --package tensorrt',
    'NonZero': 'has no plugin in TensorRT-RTX; {form}, or build with --package tensorrt',
    'DeformConv': 'is not parsed by TensorRT-RTX; build with --package tensorrt, or take a model without DCN',
}
FLOAT_ONLY = {
    **dict.fromkeys(('MatMul', 'Gemm'), 'multiplies only floats; cast its operands to float32'),
    'Conv': 'takes only floats; cast its operands to float32',
    'Resize': 'resizes only floats; cast its input to float32',
    'GridSample': 'samples only floats; cast its input to float32',
}
NO_OPERATOR = 'TensorRT has no such operator; rewrite it in others ({graph} replace)'
_NOT_KNOWN = """
AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im
Compress ConcatFromSequence ConvInteger CumProd DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger
MaxRoiPool MaxUnpool Multinomial MelWeightMatrix NegativeLogLikelihoodLoss Optional OptionalGetElement
OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty
SequenceErase SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat
StringNormalizer StringSplit SwiGLU TfIdfVectorizer Unique
"""
UNSUPPORTED = dict.fromkeys(_NOT_KNOWN.split(), NO_OPERATOR)
"""What the parser of tensorrt-rtx 1.7.1 says that it does not know, of all operators of onnx 1.23.2."""
UNSUPPORTED['MatMulInteger'] = (
    'TensorRT has no integer products; of masks, form full: give the file a constant number of candidates '
    '(--max-candidates K), or export --postprocess raw'
)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """One node that TensorRT cannot take, or an input or output, which has no operator.

    `node` is its name, '#12' where it has none; `reason` says what is wrong and what to change.
    """

    node: str
    operator: str
    reason: str


class _Facts:
    """Types and small constants of a graph, and how its family exports it with constant shapes, `form`.

    `pooled` are the outputs of each RoiAlign that a build writes as gathers.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.form = _constant_shapes(model)
        opset = opsets_of(model).get('', 0)
        self.pooled = {node.output[0] for node in model.graph.node if is_replaced(node, opset)}
        self.kinds = types.infer(model)
        slim = types.skeleton(model)
        fold_shapes(slim, self.kinds)
        self.constants = {
            one.name: one
            for one in slim.graph.initializer
            if one.raw_data or one.int64_data or one.int32_data or one.float_data
        }
        for node in slim.graph.node:
            for entry in node.attribute:
                if node.op_type == 'Constant' and entry.name == 'value':
                    self.constants[node.output[0]] = entry.t

    def element(self, name: str) -> int:
        kind = self.kinds.get(name)
        return kind.tensor_type.elem_type if kind is not None and kind.HasField('tensor_type') else 0

    def first(self, node: onnx.NodeProto) -> int:
        return self.element(next(iter(node.input), ''))

    def number(self, name: str) -> int | None:
        tensor = self.constants.get(name)
        return int(numpy_helper.to_array(tensor).ravel()[0]) if tensor is not None else None


def find_refusals(model: onnx.ModelProto, *, rtx: bool) -> list[Refusal]:
    """Return everything in a graph that TensorRT cannot take, inputs first, then nodes in file order.

    `rtx` judges by TensorRT-RTX, which has fewer operators. A graph of the libspconv dialect, which TensorRT
    reads through libspconv alone, is a ModelFileError.
    """
    check_ordinary(model)
    facts = _Facts(model)
    return _boundary(model.graph) + [
        Refusal(node.name or f'#{place}', node.op_type, reason)
        for graph in all_graphs(model)
        for place, node in enumerate(graph.node)
        if (reason := _reason(node, facts, rtx))
    ]


def check_limits(model: onnx.ModelProto, *, rtx: bool, what: str = '') -> None:
    """Raise EngineError for a graph that TensorRT cannot take.

    It names the nodes, up to three of each kind, and what to change.
    """
    found = find_refusals(model, rtx=rtx)
    if not found:
        return
    title = 'TensorRT-RTX' if rtx else 'TensorRT'
    count = f'{len(found)} node{"s" * (len(found) > 1)}'
    raise EngineError(f'{what or "the file"}: {title} cannot take {count}: {"; ".join(_grouped(found))}')


def check_turing(model: onnx.ModelProto, architectures: Collection[int], what: str = '') -> None:
    """Raise EngineError for float32 matrix products for SM 7.5, which tensorrt-rtx 1.7.1 does not compile.

    Convolutions of float32, and matrix products of float16, build.
    """
    if TURING not in architectures:
        return
    kinds = types.infer(model)
    floats = {name for name, kind in kinds.items() if kind.tensor_type.elem_type == TensorProto.FLOAT}
    single = [
        Refusal(node.name or f'#{place}', node.op_type, NO_TURING)
        for place, node in enumerate(model.graph.node)
        if node.op_type in ('MatMul', 'Gemm', 'Einsum') and node.input[0] in floats
    ]
    if single:
        raise EngineError(f'{what or "the file"}: SM {TURING} is asked for: {"; ".join(_grouped(single))}')


def _constant_shapes(model: onnx.ModelProto) -> str:
    """Return what to do for a file without sizes that depend on the data, as far as its family has that."""
    props = {entry.key: entry.value for entry in model.metadata_props}
    if f'{PREFIX}family' in props:
        family = read_entry(props, 'family', 'the file')
        if not any(option.name in LIMITS for option in options_of(family)):
            return f'the family {family} has no form with constant shapes'
    return CONSTANT_SHAPES


def _grouped(found: Sequence[Refusal]) -> list[str]:
    """Return one text per operator and reason, with the first nodes that it is about."""
    groups: dict[tuple[str, str], list[str]] = {}
    for refusal in found:
        groups.setdefault((refusal.operator, refusal.reason), []).append(refusal.node)
    return [
        f'{join_names(nodes, 3)}{f" ({operator})" if operator else ""}: {reason}'
        for (operator, reason), nodes in groups.items()
    ]


def _boundary(graph: onnx.GraphProto) -> list[Refusal]:
    found = []
    for side, values in (('input', graph.input), ('output', graph.output)):
        for value in values:
            element = value.type.tensor_type.elem_type
            if element not in TAKEN or element == TensorProto.DOUBLE:
                kind = TensorProto.DataType.Name(element).lower()
                reason = f'{side} of type {kind}; TensorRT takes float32, float16, int32, int64, bool, uint8'
                found.append(Refusal(value.name, '', f'{reason}: cast it outside of the graph'))
    return found


def _reason(node: onnx.NodeProto, facts: _Facts, rtx: bool) -> str:
    if node.domain not in DEFAULT_DOMAINS:
        return f'is of domain {node.domain!r}, for which there is no plugin; export it in standard operators'
    if rtx and node.op_type in RTX_OPERATORS:
        return RTX_OPERATORS[node.op_type].format(form=facts.form)
    if node.op_type in UNSUPPORTED:
        return UNSUPPORTED[node.op_type].format(graph=tool('graph'))
    if rtx and node.op_type == 'RoiAlign' and node.output[0] not in facts.pooled:
        return (
            "has no plugin in TensorRT-RTX, and becomes gathers in mode 'avg' alone, from opset 16 on and "
            'outside of sub-graphs'
        )
    rule = RULES.get(node.op_type)
    return (rule(node, facts) if rule else '') or _elements(node, facts)


def _top_k(node: onnx.NodeProto, facts: _Facts) -> str:
    k = facts.number(node.input[1])
    if k is not None and k > LARGEST_K:
        return (
            f'K={k}, and TensorRT sorts {LARGEST_K} at most: export with a smaller --max-candidates, nms_pre '
            f'or max_per_img (--cfg-options model.test_cfg.nms_pre=1000), or another form'
        )
    return ''


def _split(node: onnx.NodeProto, facts: _Facts) -> str:
    if not any(node.input[1:]) or node.input[1] in facts.constants:
        return ''
    return (
        'splits by lengths that are known at run time only, and the builder wants their values; split by '
        'constants (a sparse backbone: pytorch2onnx.py --sparse-form tables, export_scn.py --form tables)'
    )


def _scatter(node: onnx.NodeProto, facts: _Facts) -> str:
    reduction = next((entry.s.decode() for entry in node.attribute if entry.name == 'reduction'), 'none')
    return f'reduction={reduction!r} is not taken; scatter without a reduction' if reduction != 'none' else ''


def _reduce(node: onnx.NodeProto, facts: _Facts) -> str:
    return 'reduces bool; cast its input to int32' if facts.first(node) == TensorProto.BOOL else ''


RULES = {
    **dict(TopK=_top_k, Split=_split, ReduceMax=_reduce, ReduceMin=_reduce),
    **dict(ScatterElements=_scatter, ScatterND=_scatter),
}
"""Operator -> what a node and the facts say is wrong with it, '' when nothing is."""


def _elements(node: onnx.NodeProto, facts: _Facts) -> str:
    if node.op_type in FLOAT_ONLY and facts.first(node) in INTEGERS:
        return FLOAT_ONLY[node.op_type]
    for name in node.output:
        element = facts.element(name)
        if element and element not in TAKEN:
            kind = TensorProto.DataType.Name(element).lower()
            return f'gives {name!r} of type {kind}, which TensorRT does not have; cast to another type'
    if node.op_type != 'Cast' and facts.first(node) == TensorProto.UINT8:
        return 'computes on uint8, which TensorRT can only cast; cast the input to float32 first'
    return ''
