"""Rename tensors and nodes; apply the inputs, outputs and axes of a spec."""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.base.errors import ExportError, UsageError
from mmdeploy_ext.graphs.io.index import all_graphs, all_nodes, bodies, claim_name, refill, writes
from mmdeploy_ext.spec.tensors import GraphSpec


def all_tensor_names(model: onnx.ModelProto) -> list[str]:
    graphs = list(all_graphs(model.graph))
    names = [value.name for graph in graphs for value in (*graph.input, *graph.initializer)]
    return names + [name for graph in graphs for node in graph.node for name in writes(node)]


def rename_tensors(graph: onnx.GraphProto, new: Callable[[str], str]) -> None:
    """Rename every tensor of a graph and its bodies, in place, also in declarations."""

    def renamed(name: str) -> str:
        return new(name) if name else name

    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = renamed(value.name)
    for node in graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        for body in bodies(node):
            rename_tensors(body, new)


def rename_nodes(graph: onnx.GraphProto, new: Callable[[str], str]) -> None:
    for node in graph.node:
        node.name = new(node.name)
        for body in bodies(node):
            rename_nodes(body, new)


def apply_spec(model: onnx.ModelProto, spec: GraphSpec) -> onnx.ModelProto:
    """Give a model the spec's inputs and outputs, in its order; it is changed in place and returned.

    - An input that the exporter dropped because nothing uses it is put back.
    - An input with a default gets an initializer of that value, of size 1 along dynamic axes, which feeding
      overrides.
    - Declared shapes are the spec's, with its names of dynamic axes.
    """
    graph = model.graph
    extra = [value.name for value in graph.input if value.name not in spec.input_names]
    produced = {name for node in graph.node for name in node.output}
    produced.update(tensor.name for tensor in graph.initializer)
    absent = [name for name in spec.output_names if name not in produced]
    if extra or absent:
        raise ExportError(
            f'{spec.name}: the graph and its spec differ: inputs that the spec lacks {extra}, outputs '
            f'that the graph lacks {absent}'
        )
    inputs, outputs = (
        [
            helper.make_tensor_value_info(
                tensor.name,
                helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)),
                list(tensor.axes),
                doc_string=tensor.meaning,
            )
            for tensor in tensors
        ]
        for tensors in (spec.inputs, spec.outputs)
    )
    defaults = {}
    for tensor in spec.inputs:
        if tensor.is_optional:
            shape = [axis if isinstance(axis, int) else 1 for axis in tensor.axes]
            values = np.full(shape, tensor.default, tensor.dtype)
            defaults[tensor.name] = numpy_helper.from_array(values, tensor.name)
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name in defaults:
            del graph.initializer[place]
    graph.initializer.extend(defaults.values())
    refill(graph, input=inputs, output=outputs)
    model.ir_version = max(model.ir_version, 4)
    return model


def name_ends(
    model: onnx.ModelProto, output_names: Sequence[str], dynamic: Mapping[str, Mapping[int, str]]
) -> onnx.ModelProto:
    """Return a model with given names of outputs and dynamic axes, whichever exporter wrote it.

    Outputs take `output_names` in order; further ones are output_<place>. Axes take the names of `dynamic`
    (input, or new output name -> axis -> name); other axes of the same symbol change with them.
    """
    result = copy.deepcopy(model)
    graph = result.graph
    prefix, count = f'output_names {list(output_names)}', len(graph.output)
    if len(output_names) > count:
        raise UsageError(f'{prefix}: got {len(output_names)} names, but the module returns {count} tensors')
    names = [*output_names, *(f'output_{place}' for place in range(len(output_names), count))]
    inputs = [value.name for value in graph.input]
    if repeated := sorted(name for name in set(names) if (inputs + names).count(name) > 1):
        raise UsageError(f'{prefix}: {", ".join(repeated)} would name two inputs or outputs')
    _name_outputs(result, names)
    ends = {value.name: value for value in (*graph.input, *graph.output)}
    unknown = sorted(dynamic.keys() - ends.keys())
    if unknown:
        raise UsageError(f'dynamic names {", ".join(unknown)}: expected one of {", ".join(ends)}')
    letters: dict[str, str] = {}
    for name, axes in dynamic.items():
        dims = ends[name].type.tensor_type.shape.dim
        _check_axes(name, axes, len(dims))
        for axis, letter in axes.items():
            if dims[axis].dim_param.isidentifier():
                letters.setdefault(dims[axis].dim_param, letter)
    _name_sizes(result, letters)
    for name, axes in dynamic.items():  # last, since a new name may be an old one of another axis
        for axis, letter in axes.items():
            ends[name].type.tensor_type.shape.dim[axis].dim_param = letter
    return result


def check_axes(inputs: Mapping[str, Any], dynamic: Mapping[str, Mapping[int, str]]) -> None:
    for name, axes in dynamic.items():
        if hasattr(inputs.get(name), 'shape'):
            _check_axes(name, axes, len(inputs[name].shape))


def _check_axes(name: str, axes: Mapping[int, str], count: int) -> None:
    for axis in axes:
        if not 0 <= axis < count:
            raise UsageError(f'dynamic axis {axis} of {name}: the tensor has {count} axes, 0 to {count - 1}')


def _name_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    graph = model.graph
    used = {value.name for value in graph.input}
    for place, value in enumerate(graph.output):  # a tensor that is two outputs, or an input too, is copied
        if value.name in used:
            copied = f'{value.name}_copy_{place}'
            graph.node.append(helper.make_node('Identity', [value.name], [copied], name=copied))
            value.name = copied
        used.add(value.name)
    new_names = {value.name: name for value, name in zip(graph.output, names, strict=True)}
    used = {name for node in all_nodes(model) for name in writes(node)}.union(new_names.values())
    used.update(value.name for value in (*graph.input, *graph.initializer))
    for name in names:
        if name not in new_names:
            new_names[name] = claim_name(name, used)
    rename_tensors(graph, lambda name: new_names.get(name, name))


def _name_sizes(model: onnx.ModelProto, letters: Mapping[str, str]) -> None:
    if all(old == new for old, new in letters.items()):
        return
    pattern = re.compile(rf'\b({"|".join(map(re.escape, letters))})\b')
    for graph in all_graphs(model):
        for value in (*graph.input, *graph.output, *getattr(graph, 'value_info', ())):
            if isinstance(value, onnx.ValueInfoProto):  # a function has names alone
                for dim in value.type.tensor_type.shape.dim:
                    if dim.dim_param:
                        dim.dim_param = pattern.sub(lambda match: letters[match[1]], dim.dim_param)
