"""Change a graph so that TensorRT reads it correctly; ONNX Runtime computes the same."""

import copy
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.base.errors import UsageError, shape_text
from mmdeploy_ext.graphs import output_comparison
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import all_graphs, did_you_mean, free_name, refill, writes
from mmdeploy_ext.graphs.passes.simplify import fold
from mmdeploy_ext.spec.metadata import PREFIX, Metadata
from mmdeploy_ext.spec.tensors import GraphSpec

LOOP_CONDITION = 'always'
"""Name of the constant condition of loops without one."""


def for_tensorrt(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that TensorRT's parser reads as ONNX means it; a second run changes nothing.

    - Initializers that are also inputs are removed, from IR 4 on (before, each weight is an input).
    - A Loop of the main graph without a condition gets a constant one, true.
    """
    result = copy.deepcopy(model)
    graph = result.graph
    inputs = {value.name for value in graph.input}
    if result.ir_version > 3:
        refill(graph, initializer=[tensor for tensor in graph.initializer if tensor.name not in inputs])
    loops = [node for node in graph.node if node.op_type == 'Loop' and not any(node.input[1:2])]
    if loops:
        used = {name for inner in all_graphs(graph) for node in inner.node for name in writes(node)}
        used.update(value.name for value in (*graph.input, *graph.initializer))
        name = free_name(LOOP_CONDITION, used) if LOOP_CONDITION in used else LOOP_CONDITION
        graph.initializer.append(numpy_helper.from_array(np.array(True), name))
        for loop in loops:
            refill(loop, input=[loop.input[0], name, *loop.input[2:]])
    return result


def fix_inputs(model: onnx.ModelProto, values: Mapping[str, np.ndarray | None]) -> onnx.ModelProto:
    """Return a model in which `values` replace inputs (None: the default), folded by `fold`."""
    if not values:
        return model
    result = copy.deepcopy(model)
    graph = result.graph
    inputs = {value.name: value for value in graph.input}
    defaults = {tensor.name: tensor for tensor in graph.initializer}
    for name, array in values.items():
        if name not in inputs:
            hint = f'{did_you_mean(name, inputs)}; it has {", ".join(inputs)}'
            raise UsageError(f'--constant {name}: is not an input{hint}')
        if array is None and name not in defaults:
            raise UsageError(
                f'--constant {name}: the file has no default for it; pass {name}=VALUE,VALUE,...'
            )
        if array is not None:
            element = inputs[name].type.tensor_type.elem_type
            axes = types.shape(inputs[name].type) or ()
            sizes = [size if isinstance(size, int) else 1 for size in axes]
            if array.size != math.prod(sizes):
                raise UsageError(
                    f'--constant {name}: got {array.size} values, the input has shape {shape_text(sizes)}'
                )
            dtype = helper.tensor_dtype_to_np_dtype(element)
            with np.errstate(invalid='ignore'):  # NaN and infinity as integers
                is_whole = dtype.kind not in 'iub' or np.array_equal(array, array.astype(dtype))
            if not is_whole:
                raise UsageError(f'--constant {name}: the input expects {dtype}, got {array.tolist()}')
            tensor = numpy_helper.from_array(array.astype(dtype).reshape(sizes), name)
            constants = [constant for constant in graph.initializer if constant.name != name]
            refill(graph, initializer=[*constants, tensor])
    refill(graph, input=[value for value in graph.input if value.name not in values])
    return fold(result)


def parse_constants(texts: Sequence[str]) -> dict[str, np.ndarray | None]:
    """Return name -> flat float64 values of texts NAME=VALUE,...; None for a text NAME."""
    constants: dict[str, np.ndarray | None] = {}
    for text in texts:
        name, sign, numbers = text.partition('=')
        try:
            constants[name] = np.array([float(number) for number in numbers.split(',')]) if sign else None
        except ValueError as error:
            raise UsageError(f'--constant {text}: expected NAME or NAME=VALUE,VALUE,...') from error
    return constants


def engine_spec(model: onnx.ModelProto, fixed: Collection[str] = ()) -> GraphSpec:
    """Return the inputs and outputs of the engine that is built of a file."""
    props = {entry.key: entry.value for entry in model.metadata_props}
    if f'{PREFIX}spec' in props and f'{PREFIX}family' in props:
        try:
            spec = Metadata.from_props(props).spec
            inputs = tuple(tensor for tensor in spec.inputs if tensor.name not in fixed)
            return dataclasses.replace(spec, inputs=inputs)
        except ValueError:
            pass  # a file that states less: what its graph says is enough here
    spec = output_comparison.spec_of(for_tensorrt(model))
    inputs = []
    for tensor in spec.inputs:  # axes without a name get different ones, so that none is taken for another
        axes = (f'{tensor.name}.{place}' if axis == '?' else axis for place, axis in enumerate(tensor.axes))
        inputs.append(dataclasses.replace(tensor, axes=tuple(axes)))
    return dataclasses.replace(spec, inputs=tuple(inputs))
