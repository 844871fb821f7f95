"""Write a graph in another opset, with onnx's own converter."""

import copy
import re

import onnx
from onnx import helper, numpy_helper, version_converter

from mmdeploy_ext.core.errors import ExportError, ModelFileError, UsageError
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.files import is_large
from mmdeploy_ext.graph.io.index import (
    bodies,
    constant_value,
    defaults_of,
    join_names,
    node_label,
    operator_name,
    opsets_of,
    schema_of,
)

OLDEST = 7
"""The first opset that the converter's adapters are written for."""
OPERATOR = re.compile(r'(?:for|of) (\w+)(?: exists)?\s*$')
"""The operator in the converter's message."""
SHOWN = 3
"""Nodes that a message names."""
ONE_AXIS_SINCE = 13
"""The first opset in which Softmax and the like work along one axis, not along all from it on."""
SAME_AXIS_OTHER_MEANING = {True: ('Softmax', 'LogSoftmax'), False: ('Hardmax',)}
"""Whether the conversion goes below `ONE_AXIS_SINCE` -> operators of which the converter keeps the axis.

Going below it refuses Hardmax, and going above it flattens what Softmax and LogSoftmax read (onnx 1.23).
"""
PLACES_SINCE = 11
"""The first opset in which Resize states where its samples lie; by default that is another place than before.

Going above it the converter leaves the default (onnx 1.23), so that the places are stated here.
"""


def convert_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Return the model in opset `version` of ONNX's own domain.

    Other domains stay as they are, and so does the model itself: the result is a copy, also if it is in this
    opset already. The converter does not compare results, so compare the outputs; what it is known to change
    is refused, see `SAME_AXIS_OTHER_MEANING`, or put right, see `PLACES_SINCE`. It does not enter bodies and
    functions: operators there whose inputs or attributes differ between the two opsets are refused.

    Raises:
        UsageError: an opset before `OLDEST`, or one that the installed onnx does not know.
        ModelFileError: the model imports no opset of ONNX.
        ExportError: a node that cannot be converted, by name; or the result is not valid (one over 2 GiB is
            not checked).
    """
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= version <= newest:
        raise UsageError(f'opset {version}: onnx {onnx.__version__} converts to opsets {OLDEST} to {newest}')
    before = opsets_of(model).get('')
    if before is None:
        raise ModelFileError('the model imports no opset of ONNX, so there is nothing to convert')
    if before == version:
        return copy.deepcopy(model)
    _check_bodies(model, before, version)
    _check_axes(model, before, version)
    _check_resizes(model, before, version)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    try:  # without large weights: one message holds 2 GiB
        result = version_converter.convert_version(types.skeleton(model), version)
    except (RuntimeError, version_converter.ConvertError) as error:
        raise ExportError(_explain(model, before, version, str(error))) from error
    _restore_fields(result, model)
    for tensor in result.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(weights[tensor.name])
    if before < PLACES_SINCE <= version:
        _state_places(result)
    _check_converted(result, version)
    return result


def _check_axes(model: onnx.ModelProto, before: int, version: int) -> None:
    """Refuse a Softmax or the like along another axis than the last, if the converter would keep the axis."""
    is_older = version < ONE_AXIS_SINCE
    if (before < ONE_AXIS_SINCE) == is_older:
        return
    inferred = types.infer(model)
    for position, node in enumerate(model.graph.node):
        if operator_name(node) in SAME_AXIS_OTHER_MEANING[is_older]:
            axis = defaults_of(node, {'': before})['axis']
            axis = next((entry.i for entry in node.attribute if entry.name == 'axis'), axis)
            shape = types.shape(inferred.get(node.input[0]))
            if axis != -1 and (shape is None or axis != len(shape) - 1):
                raise ExportError(
                    f'opset {before} to {version}: {node_label(model.graph.node, position)} ({node.op_type}) '
                    f'works along axis {axis}, before opset {ONE_AXIS_SINCE} along all axes from {axis} on; '
                    f'the converter keeps the axis, so that the results would differ; export again'
                )


def _check_resizes(model: onnx.ModelProto, before: int, version: int) -> None:
    """Refuse a Resize of mode 'nearest' that makes an axis smaller, or whose scales are no constant.

    Before `PLACES_SINCE` it rounds down where an axis grows and up where one shrinks; later it rounds all
    axes alike.
    """
    if not before < PLACES_SINCE <= version:
        return
    graph = model.graph
    places = [place for place, node in enumerate(graph.node) if operator_name(node) == 'Resize']
    names = {graph.node[place].input[1] for place in places}
    unfed = names - {value.name for value in graph.input}
    scales = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in unfed
    }
    scales |= {node.output[0]: constant_value(node) for node in graph.node if names.intersection(node.output)}
    for position in places:
        node = graph.node[position]
        if _mode(node) == b'nearest':
            array = scales.get(node.input[1])
            if array is None or (array < 1).any():
                label = node_label(graph.node, position)
                raise ExportError(
                    f'opset {before} to {version}: the Resize {label} makes an axis smaller in mode nearest, '
                    f'or its scales are no constant: from opset {PLACES_SINCE} on it would take other '
                    f'values; export again'
                )


def _state_places(model: onnx.ModelProto) -> None:
    """State in each Resize where its samples lie before `PLACES_SINCE`, in place; the converter does not."""
    for node in model.graph.node:
        if operator_name(node) == 'Resize':
            settings = dict(coordinate_transformation_mode='asymmetric')
            if _mode(node) == b'nearest':
                settings['nearest_mode'] = 'floor'
            node.attribute.extend(helper.make_attribute(*setting) for setting in settings.items())


def _mode(resize: onnx.NodeProto) -> bytes:
    return next((entry.s for entry in resize.attribute if entry.name == 'mode'), b'nearest')


def _check_bodies(model: onnx.ModelProto, before: int, version: int) -> None:
    """Refuse operators in sub-graphs and functions that changed: the converter does not enter those."""
    waiting = [*model.functions, *(body for node in model.graph.node for body in bodies(node))]
    while waiting:
        for node in waiting.pop().node:
            waiting.extend(bodies(node))
            changed = _signature(node, before) != _signature(node, version)
            if changed and node.domain in ('', 'ai.onnx'):
                raise ExportError(
                    f'opset {before} to {version}: {node.op_type} {node.name!r} is inside a sub-graph or '
                    f'function, which the converter does not enter, and takes other inputs or attributes '
                    f'there; export again'
                )


def _signature(node: onnx.NodeProto, version: int) -> tuple | None:
    """Return names of inputs and attributes, and defaults; None if the opset has no such operator."""
    schema = schema_of(node, {'': version})
    if schema is None:
        return None
    inputs = tuple((value.name, value.option) for value in schema.inputs)
    defaults = {name: item.default_value.SerializeToString() for name, item in schema.attributes.items()}
    return inputs, tuple(sorted(defaults.items()))


def _explain(model: onnx.ModelProto, before: int, version: int, message: str) -> str:
    message = message.strip().splitlines()[-1]
    step, reason = f'opset {before} to {version}:', message.split('failed: ')[-1].replace('$', '')
    match, nodes = OPERATOR.search(message), model.graph.node
    operator = match.group(1) if match else ''
    labels = [node_label(nodes, position) for position, node in enumerate(nodes) if node.op_type == operator]
    if not labels:
        return f'{step} {reason}; export again with the opset you need'
    return (
        f'{step} {operator} cannot be converted ({reason}): nodes {join_names(labels, SHOWN)}; remove them '
        f'(fold, simplify, replace) or export again'
    )


def _restore_fields(result: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Put back what the converter does not carry over."""
    for field in ('metadata_props', 'functions'):
        if not getattr(result, field):
            getattr(result, field).extend(getattr(model, field))
    for field in ('producer_name', 'producer_version', 'doc_string', 'domain'):
        if not getattr(result, field):
            setattr(result, field, getattr(model, field))
    if model.model_version:
        result.model_version = model.model_version
    if model.graph.doc_string:
        result.graph.doc_string = model.graph.doc_string


def _check_converted(result: onnx.ModelProto, version: int) -> None:
    opsets = opsets_of(result)
    if opsets.get('') != version:
        raise ExportError(f'opset {version} was asked for, the converter wrote {opsets}')
    if is_large(result):
        return  # saving checks the file
    try:
        onnx.checker.check_model(result)
    except onnx.checker.ValidationError as error:
        reason = f'that is not valid: {str(error).strip().splitlines()[0]}'
        raise ExportError(f'the converter wrote a model of opset {version} {reason}') from error
