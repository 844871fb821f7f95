"""Operator nodes that ONNX Runtime runs in Python, for debugging: a breakpoint inside a graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import helper

from mmdeploy_ext.core.errors import EngineError
from mmdeploy_ext.exporting.ops.operator import (
    DOMAIN,
    OPERATORS,
    Operator,
    attribute_letters,
    attribute_values,
    operator_of,
)
from mmdeploy_ext.graph.io.index import all_nodes, node_attributes

if TYPE_CHECKING:
    import onnxruntime

PYTHON_DOMAIN = 'ai.onnx.contrib'
"""The one domain that onnxruntime-extensions knows for Python operators."""
ELEMENT_NAMES = {
    torch.float32: 'dt_float', torch.float64: 'dt_double', torch.float16: 'dt_float16', torch.bool: 'dt_bool',
    torch.int64: 'dt_int64', torch.int32: 'dt_int32', torch.uint8: 'dt_uint8',
}  # fmt: skip
"""Type of a tensor -> the name of onnxruntime-extensions for it."""
_registered: dict[str, dict[str, Any]] = {}
"""Name of an operator -> `inputs`, `outputs` and `attrs`, the types that were registered for it with
onnxruntime-extensions."""


def python_body(operator: Operator, name: str, attributes: dict[str, Any], opset: int) -> onnx.FunctionProto:
    """Return a local function of one node that calls Python; nodes that call the function need no change.

    Args:
        operator: the operator that is called.
        name: name of the function.
        attributes: attribute -> value, of the node that calls the function.
        opset: opset of the model.
    """
    ends = list(operator.inputs), list(operator.outputs)
    node = helper.make_node(f'{DOMAIN}_{operator.name}', *ends, domain=PYTHON_DOMAIN)
    for key, value in attributes.items():
        attribute_type = helper.make_attribute(key, value).type
        node.attribute.append(onnx.AttributeProto(name=key, type=attribute_type, ref_attr_name=key))
    imports = [helper.make_opsetid('', opset), helper.make_opsetid(PYTHON_DOMAIN, 1)]
    return helper.make_function(DOMAIN, name, *ends, [node], imports, list(attributes))


def python_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Return a session of ONNX Runtime on the CPU that calls the model's operators in Python."""
    import onnxruntime

    try:
        import onnxruntime_extensions as extensions
    except ImportError as error:
        raise EngineError(
            'Python operators need onnxruntime-extensions, which is not installed; '
            'pip install onnxruntime-extensions -c requirements/lock.txt'
        ) from error
    for node, operator in _python_calls(model):
        _register(operator, node, extensions)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(extensions.get_library_path())
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider']
    )


def _python_calls(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, Operator]]:
    names = {
        function.name: inner.op_type.removeprefix(f'{DOMAIN}_')
        for function in model.functions
        for inner in function.node
        if function.domain == DOMAIN and inner.domain == PYTHON_DOMAIN
    }
    for node in all_nodes(model):
        if node.domain == DOMAIN and node.op_type in names:
            yield node, operator_of(node.name, names[node.op_type], EngineError)


def _register(operator: Operator, node: onnx.NodeProto, extensions: Any) -> None:
    types, example = extensions.PyCustomOpDef, operator.example()
    attribute_types = dict(f=types.dt_float, i=types.dt_int64, b=types.dt_int64, s=types.dt_string)
    signature = dict(
        inputs=[_element(types, tensor, operator) for tensor in example],
        outputs=[_element(types, tensor, operator) for tensor in _example_outputs(operator, node, example)],
        attrs={name: attribute_types[letter] for name, letter in attribute_letters(operator).items()},
    )
    registered = _registered.setdefault(operator.name, signature)
    if registered != signature:
        raise EngineError(
            f'node {node.name!r}: operator {operator.name} takes or gives other types here than before in '
            f'this process, and ONNX Runtime keeps the first; give it one type of each output, or start a '
            f'new process'
        )
    if registered is not signature:
        return
    name = operator.name

    def run(*arrays: np.ndarray, **attributes: Any) -> Any:
        current = OPERATORS[name]  # looked up at every call: tests replace registered operators
        attributes = attribute_values(current, attributes)
        if current.reference is not None:
            return current.reference(*arrays, **attributes)
        with torch.no_grad():
            outputs = current.eager(*(torch.from_numpy(np.array(array)) for array in arrays), **attributes)
        return tuple(output.numpy() for output in outputs) if isinstance(outputs, tuple) else outputs.numpy()

    extensions.onnx_op(op_type=f'{DOMAIN}_{name}', **signature)(run)


def _element(types: Any, tensor: torch.Tensor, operator: Operator) -> Any:
    if tensor.dtype not in ELEMENT_NAMES:
        dtypes = ', '.join(str(dtype).removeprefix('torch.') for dtype in ELEMENT_NAMES)
        raise EngineError(
            f'operator {operator.name}: {tensor.dtype} cannot go to Python; ONNX Runtime hands over {dtypes}'
        )
    return getattr(types, ELEMENT_NAMES[tensor.dtype])


def _example_outputs(
    operator: Operator, node: onnx.NodeProto, example: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    attributes = attribute_values(operator, node_attributes(node))
    try:
        with torch.no_grad():
            outputs = operator.eager(*example, **attributes)
    except Exception as error:
        settings = ', '.join(f'{name}={value!r}' for name, value in attributes.items()) or 'no attributes'
        raise EngineError(
            f'node {node.name!r}: the eager form of operator {operator.name} fails on its own example with '
            f'{settings}: {type(error).__name__}: {error}'
        ) from error
    return outputs if isinstance(outputs, tuple) else (outputs,)
