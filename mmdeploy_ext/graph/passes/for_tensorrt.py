"""Make a graph one that TensorRT reads correctly; each step changes nothing in ONNX Runtime.

TensorRT's parser takes an input that has an initializer for a constant, so that feeding it would do nothing:
such an input becomes an ordinary one, and the runtime feeds its default. A Loop without a condition gets one
that is always true, since the parser does not give its body any. Needs onnx, and onnxscript where inputs
become constants.
"""

import copy
import dataclasses
import glob
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.contract.metadata import PREFIX, Metadata
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph import output_comparison
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import Index, did_you_mean, refill
from mmdeploy_ext.graph.passes.fp16 import PRODUCTS
from mmdeploy_ext.graph.passes.simplify import fold

ALWAYS = 'always'
"""Name of the condition."""
STAGES = ('decode/*', 'postprocess/*', 'proposals/*', 'regions/*', 'paste/*')
"""Names of the nodes that make and read boxes; in float16 a pixel near 608 is 0.5 wide."""


def for_tensorrt(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that TensorRT's parser reads as ONNX means it.

    - An initializer that is an input too is removed; other initializers stay.
    - A Loop without a condition gets a constant one, true; a Loop that has one stays.
    A second run changes nothing.
    """
    result = copy.deepcopy(model)
    fed = {value.name for value in result.graph.input}
    refill(result.graph, initializer=[entry for entry in result.graph.initializer if entry.name not in fed])
    loops = [node for node in result.graph.node if node.op_type == 'Loop' and not node.input[1]]
    for node in loops:
        node.input[1] = ALWAYS
    if loops and all(tensor.name != ALWAYS for tensor in result.graph.initializer):
        result.graph.initializer.append(numpy_helper.from_array(np.array(True), ALWAYS))
    return result


def fix_inputs(model: onnx.ModelProto, values: Mapping[str, np.ndarray | None]) -> onnx.ModelProto:
    """Return a model in which inputs are constants, with all that depends on constants alone computed.

    Fires on the inputs that `values` names; None there is the default that the file states. Where sizes
    inside depend on the values of an input, this is what makes them known: the frame of SOLO's masks follows
    from `img_shape`.

    Raises:
        UsageError: no such input, no default, or a value of another number of elements.
    """
    if not values:
        return model
    result = copy.deepcopy(model)
    graph = result.graph
    inputs = {value.name: value for value in graph.input}
    defaults = {tensor.name: tensor for tensor in graph.initializer}
    for name, array in values.items():
        if name not in inputs:
            known = f'{did_you_mean(name, inputs)}; it has {", ".join(inputs)}'
            raise UsageError(f'--constant {name}: is not an input{known}')
        if array is None and name not in defaults:
            raise UsageError(f'--constant {name}: the file states no default; give {name}=VALUE,VALUE,...')
        if array is not None:
            tensor = _constant(inputs[name], array)
            refill(graph, initializer=[*(other for other in graph.initializer if other.name != name), tensor])
    refill(graph, input=[value for value in graph.input if value.name not in values])
    return fold(result)


def _constant(value: onnx.ValueInfoProto, array: np.ndarray) -> onnx.TensorProto:
    kind = value.type.tensor_type
    sizes = [size.dim_value if size.HasField('dim_value') else 1 for size in kind.shape.dim]
    if array.size != math.prod(sizes):
        wanted = 'x'.join(map(str, sizes))
        raise UsageError(f'--constant {value.name}: {array.size} values, the input has {wanted}')
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return numpy_helper.from_array(array.astype(dtype).reshape(sizes), value.name)


def parse_constants(texts: Sequence[str]) -> dict[str, np.ndarray | None]:
    """Read NAME or NAME=VALUE,VALUE,...; a value that is no number is a UsageError."""
    found: dict[str, np.ndarray | None] = {}
    for text in texts:
        name, sign, written = text.partition('=')
        try:
            found[name] = np.array([float(word) for word in written.split(',')]) if sign else None
        except ValueError as error:
            raise UsageError(f'--constant {text}: expected NAME or NAME=VALUE,VALUE,...') from error
    return found


def spec_of(model: onnx.ModelProto, fixed: Collection[str] = ()) -> GraphSpec:
    """Return the spec that a file of this project states; of another file, its inputs and outputs.

    Inputs that became constants, `fixed`, are not in it.
    """
    props = {entry.key: entry.value for entry in model.metadata_props}
    if f'{PREFIX}spec' in props and f'{PREFIX}family' in props:
        try:
            spec = Metadata.from_props(props).spec
            inputs = tuple(tensor for tensor in spec.inputs if tensor.name not in fixed)
            return dataclasses.replace(spec, inputs=inputs)
        except ValueError:
            pass  # a file that states less: what its graph says is enough here
    spec = output_comparison.spec_of(for_tensorrt(model))

    def named(tensor: TensorSpec) -> TensorSpec:  # no axis without a name is taken for another
        axes = (f'{tensor.name}.{place}' if axis == '?' else axis for place, axis in enumerate(tensor.axes))
        return dataclasses.replace(tensor, axes=tuple(axes))

    return dataclasses.replace(spec, inputs=tuple(map(named, spec.inputs)))


def fp32_patterns(model: onnx.ModelProto) -> list[str]:
    """Return patterns of the nodes that stay float32 by default when float16 is written into a model.

    - The stages after the network, `STAGES`.
    - What an Equal of floats compares, back to the last product with a weight: SOLO keeps the cells that
      equal the maximum of their neighbourhood, and an engine that keeps one side of the comparison in more
      digits than the other finds none (measured on the toy SOLOv2 in ONNX Runtime: cosine 0.03).
    """
    names = [node.name for node in model.graph.node]
    stages = [pattern for pattern in STAGES if any(name.startswith(pattern[:-1]) for name in names)]
    index, kinds = Index(model), types.infer(model)
    floats = {name for name, kind in kinds.items() if kind.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    nodes = enumerate(index.nodes)
    waiting = [at for at, node in nodes if node.op_type == 'Equal' and node.input[0] in floats]
    found: set[int] = set()
    while waiting:
        place = waiting.pop()
        if place not in found and index.nodes[place].op_type not in PRODUCTS:
            found.add(place)
            above = {index.producer(name) for name in floats.intersection(index.reads(place))}
            waiting.extend(above - {None})
    return stages + [glob.escape(index.writes(place)[0]) for place in sorted(found)]
