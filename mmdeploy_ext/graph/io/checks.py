"""Checks of a graph before it is used: opsets, order, bytes, ONNX's own rules. Needs onnx only.

Where one takes `name`, it is the file that the model is from, for the message.

The libspconv dialect: NVIDIA's libspconv, an engine of sparse convolutions, reads files in ONNX's format
whose operators and attributes are its own, and which are no valid ONNX.
"""

import graphlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from onnx import numpy_helper

from mmdeploy_ext.core.errors import ModelFileError, shape_text, shortened
from mmdeploy_ext.core.files import EXPORT_AGAIN, AnyPath
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import all_nodes, all_tensors, node_label, reads, writes

DEFAULT_DOMAINS = ('', 'ai.onnx')
"""Both are names of ONNX's own domain."""
SPARSE_OPERATORS = ('SparseConvolution', 'ScatterDense')
"""Operators of the libspconv dialect."""
_DTYPES = onnx.TensorProto
WHOLE_BYTES = frozenset(range(_DTYPES.FLOAT, _DTYPES.BFLOAT16 + 1))
WHOLE_BYTES -= {_DTYPES.STRING, _DTYPES.COMPLEX64, _DTYPES.COMPLEX128}
"""Data types whose elements are single numbers of 8 bits and more, without float8."""


def is_sparse(model: onnx.ModelProto) -> bool:
    """Return whether a model is in the libspconv dialect: its main graph has one of `SPARSE_OPERATORS`."""
    return any(node.op_type in SPARSE_OPERATORS for node in model.graph.node)


def check_ordinary(model: onnx.ModelProto) -> None:
    """Raise ModelFileError for a graph of the libspconv dialect, before its types or numbers are used."""
    if is_sparse(model):
        raise ModelFileError(
            'the model is a sparse graph of the libspconv dialect, which has no types and runs in no ONNX '
            'Runtime; its portable form (`export_scn.py --target portable`) can be cut and run'
        )


def check_opsets(model: onnx.ModelProto, name: AnyPath) -> None:
    """Raise ModelFileError for a model without opsets, or of a version that is newer than the installed onnx.

    The versions are those of ONNX's own opset and of the IR; opsets of other domains are not looked at.
    """
    if not model.opset_import:
        raise ModelFileError(
            f'{name}: states no opset; it was cut short, or is not an ONNX file: {EXPORT_AGAIN}'
        )
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in DEFAULT_DOMAINS and entry.version > newest:
            raise ModelFileError(
                f'{name}: is of opset {entry.version}, and onnx {onnx.__version__} knows opsets up to '
                f'{newest}; upgrade onnx or export with an older opset'
            )
    if model.ir_version > onnx.IR_VERSION:
        raise ModelFileError(
            f'{name}: is of IR version {model.ir_version}, and onnx {onnx.__version__} knows versions up to '
            f'{int(onnx.IR_VERSION)}; upgrade onnx'
        )


def check_names(model: onnx.ModelProto, name: AnyPath) -> None:
    """Raise ModelFileError for a name that is not UTF-8, which protobuf gives as bytes.

    The names are those of nodes, of their tensors and attributes, and of constants, also in bodies and
    functions; and of the main graph itself, its inputs, outputs, stated inner tensors and their axes.
    """
    for owner, text in _names(model):
        if isinstance(text, bytes):
            raise ModelFileError(
                f'{name}: the name of {owner} is not UTF-8: {shortened(text)}; {EXPORT_AGAIN}'
            )


def _names(model: onnx.ModelProto) -> Iterator[tuple[str, str | bytes]]:
    """Yield what has a name, and the name."""
    for place, node in enumerate(all_nodes(model)):
        for text in (node.name, node.op_type, node.domain, node.overload):
            yield f'node {place}', text
        for text in (*node.input, *node.output):
            yield f'a tensor of node {place}', text
        for attribute in node.attribute:
            yield f'an attribute of node {place}', attribute.name
    for tensor in all_tensors(model):
        yield 'a constant', tensor.name
    graph = model.graph
    yield 'the graph', graph.name
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield 'a tensor', value.name
        for axis in value.type.tensor_type.shape.dim:
            yield f'an axis of {value.name}', axis.dim_param


def check_bytes(model: onnx.ModelProto, name: AnyPath) -> None:
    """Raise ModelFileError for a constant with more or fewer bytes than its shape takes, by its name.

    The constants are those of `all_tensors`; external data has to be loaded before. Of texts, complex
    numbers, float8, and of types below 8 bits that are not stored as raw data, the values have to be
    readable. A data type that onnx does not know is refused.
    """
    for tensor in all_tensors(model):
        is_packed = types.type_name(tensor.data_type) in types.PACKED_BITS and tensor.HasField('raw_data')
        if tensor.data_type not in WHOLE_BYTES and not is_packed:
            try:
                numpy_helper.to_array(tensor)
            except (KeyError, TypeError, ValueError) as error:
                raise ModelFileError(
                    f'{name}: the values of {tensor.name!r} cannot be read ({error}): {EXPORT_AGAIN}'
                ) from error
            continue
        stored, expected = len(tensor.raw_data), types.byte_size(tensor.data_type, math.prod(tensor.dims))
        if not tensor.HasField('raw_data'):
            field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
            stored = types.byte_size(tensor.data_type, len(getattr(tensor, field)))
        if stored != expected:
            raise ModelFileError(
                f'{name}: the weights of {tensor.name!r} are {stored} bytes, and its shape '
                f'{shape_text(tensor.dims)} takes {expected}; they were cut short, or are of another model: '
                f'{EXPORT_AGAIN}'
            )


def check_order(model: onnx.ModelProto, name: AnyPath = 'the model') -> None:
    """Raise ModelFileError for nodes in a cycle, out of order, or that read what nothing makes.

    They are the nodes of the main graph, with what their bodies read from outside; also an output of the
    graph that nothing makes is an error.
    """
    graph = model.graph
    available = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    available.update(entry.values.name for entry in graph.sparse_initializer)
    producers = {output: position for position, node in enumerate(graph.node) for output in writes(node)}
    for position, node in enumerate(graph.node):
        for tensor in reads(node):
            if tensor in available:
                continue
            if tensor not in producers:
                reason = ', which no node, input or initializer gives'
            elif cycle := _cycle(graph, producers):
                reason = f', which depends on itself: {" -> ".join(cycle)} is a cycle'
            else:
                producer = node_label(graph.node, producers[tensor])
                reason = f' before node {producer} has written it: nodes must be in topological order'
            reader = node_label(graph.node, position)
            raise ModelFileError(f'{name}: node {reader} ({node.op_type}) reads {tensor!r}{reason}')
        available.update(writes(node))
    missing = [value.name for value in graph.output if value.name not in available]
    if missing:
        raise ModelFileError(f'{name}: no node gives the outputs {", ".join(missing)}')


def _cycle(graph: onnx.GraphProto, producers: dict[str, int]) -> list[str]:
    """Return the nodes of a cycle, or []."""
    predecessors = {
        position: [producers[tensor] for tensor in reads(node) if tensor in producers]
        for position, node in enumerate(graph.node)
    }
    try:
        graphlib.TopologicalSorter(predecessors).prepare()
    except graphlib.CycleError as error:
        return [node_label(graph.node, position) for position in error.args[1]]
    return []


def names_without_shape(values: Sequence[onnx.ValueInfoProto]) -> list[str]:
    """Return the names of the tensors that state no shape, not even one with open axes.

    Sequences and values without a type are not among them.
    """
    return [
        value.name
        for value in values
        if value.type.HasField('tensor_type') and not value.type.tensor_type.HasField('shape')
    ]


def check_valid(model: onnx.ModelProto | Path, name: AnyPath) -> None:
    """Raise ModelFileError, with onnx.checker's message, for a model that is not valid ONNX.

    So it does for a path with no file or no model behind it. `model` is the path of its file if it is too
    large for one message. A path is always checked, a model not if it is of the libspconv dialect.
    """
    if isinstance(model, onnx.ModelProto) and is_sparse(model):
        return
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        hint = ''
        if isinstance(model, onnx.ModelProto):
            names = names_without_shape((*model.graph.input, *model.graph.output))
            hint = f' (of {", ".join(names)}; graph.py set-shape states those of inputs)' if names else ''
        raise ModelFileError(f'{name}: would not be a valid model: {error}{hint}') from error
