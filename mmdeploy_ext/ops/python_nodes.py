"""Operator nodes that ONNX Runtime runs in Python, for debugging: a breakpoint inside a graph.

Needs onnxruntime-extensions (an optional extra; 0.15.2 runs with onnxruntime 1.31).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import helper

from mmdeploy_ext.errors import EngineError
from mmdeploy_ext.ops.operator import DOMAIN, OPERATORS

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnxruntime

    from mmdeploy_ext.ops.operator import Operator

PYTHON_DOMAIN = 'ai.onnx.contrib'
"""The one domain that onnxruntime-extensions knows for Python operators."""
ELEMENT_NAMES = {
    torch.float32: 'dt_float', torch.float64: 'dt_double', torch.float16: 'dt_float16', torch.bool: 'dt_bool',
    torch.int64: 'dt_int64', torch.int32: 'dt_int32', torch.uint8: 'dt_uint8',
}  # fmt: skip
_registered: set[str] = set()


def python_body(operator: Operator, name: str, attributes: dict[str, Any], opset: int) -> onnx.FunctionProto:
    """Return a local function with one node that calls Python; the outer node stays as it was exported."""
    node = helper.make_node(
        python_name(operator), list(operator.inputs), list(operator.outputs), domain=PYTHON_DOMAIN
    )
    for key, value in attributes.items():
        kind = helper.make_attribute(key, value).type
        node.attribute.append(onnx.AttributeProto(name=key, type=kind, ref_attr_name=key))
    imports = [helper.make_opsetid('', opset), helper.make_opsetid(PYTHON_DOMAIN, 1)]
    return helper.make_function(
        DOMAIN, name, list(operator.inputs), list(operator.outputs), [node], imports, list(attributes)
    )


def python_name(operator: Operator) -> str:
    """Return the op_type of the operator among onnxruntime-extensions' Python operators."""
    return f'{DOMAIN}_{operator.name}'


def python_session(model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return a session of ONNX Runtime on the CPU that calls registered operators in Python.

    An operator's `reference` is called with numpy arrays and attributes, or else its eager form with tensors.

    Raises:
        EngineError: onnxruntime-extensions is not installed.
    """
    import onnxruntime

    try:
        import onnxruntime_extensions as extensions
    except ImportError as error:
        raise EngineError(
            'Python operators need onnxruntime-extensions, which is not installed; '
            'pip install onnxruntime-extensions'
        ) from error
    for operator in OPERATORS.values():
        _register(operator, extensions)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(extensions.get_library_path())
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider']
    )


def _register(operator: Operator, extensions: Any) -> None:
    if operator.name in _registered:
        return
    from mmdeploy_ext.ops.exporters import attribute_letters

    types = extensions.PyCustomOpDef
    letters = attribute_letters(operator)
    kinds = dict(f=types.dt_float, i=types.dt_int64, b=types.dt_int64, s=types.dt_string)
    example = operator.example()
    extensions.onnx_op(
        op_type=python_name(operator),
        inputs=[getattr(types, ELEMENT_NAMES[tensor.dtype]) for tensor in example],
        outputs=[getattr(types, ELEMENT_NAMES[tensor.dtype]) for tensor in _example_outputs(operator)],
        attrs={name: kinds[letter] for name, letter in letters.items()},
    )(numpy_form(operator))
    _registered.add(operator.name)


def _example_outputs(operator: Operator) -> tuple[torch.Tensor, ...]:
    from mmdeploy_ext.ops.exporters import attribute_letters

    some = dict(f=0.5, i=1, b=1, s='')
    attributes = [some[letter] for letter in attribute_letters(operator).values()]
    found = operator.eager(*operator.example(), *attributes)
    return found if isinstance(found, tuple) else (found,)


def numpy_form(operator: Operator) -> Callable[..., Any]:
    """Return the operator as a function of numpy arrays, with attributes by name."""

    def run(*arrays: np.ndarray, **attributes: Any) -> Any:
        if operator.reference is not None:
            return operator.reference(*arrays, **attributes)
        with torch.no_grad():
            found = operator.eager(*(torch.from_numpy(np.array(array)) for array in arrays), **attributes)
        return tuple(item.numpy() for item in found) if isinstance(found, tuple) else found.numpy()

    return run
