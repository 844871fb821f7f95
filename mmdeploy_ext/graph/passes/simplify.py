"""Simplify a graph with onnxslim, and keep what callers rely on: names and types of inputs and outputs."""

from __future__ import annotations

import onnx

from mmdeploy_ext.errors import EngineError, ExportError
from mmdeploy_ext.graph.passes.fold import Folded, quietly


def simplify(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Folded]:
    """Return a simplified model, and the number of nodes before and after.

    Constants are folded, pairs of nodes fused, doubles merged, whatever nothing reads removed. Inputs that
    nothing uses and metadata stay.

    Args:
        model: stays as it is.

    Raises:
        EngineError: onnxslim is not installed.
        ExportError: onnxslim failed on the model, or changed its inputs or outputs.
    """
    try:
        import onnxslim
    except ImportError as error:
        raise EngineError(
            f'simplifying needs onnxslim ({error}); install it with: pip install onnxslim'
        ) from error
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    try:
        with quietly():
            slim = onnxslim.slim(copied)
    except Exception as error:
        raise ExportError(
            f'onnxslim failed on the model ({type(error).__name__}: {error}); try fold'
        ) from error
    _restore_inputs(slim, model)
    _check_ends(slim, model)
    kept = {entry.key for entry in slim.metadata_props}
    slim.metadata_props.extend(entry for entry in model.metadata_props if entry.key not in kept)
    return slim, Folded(len(model.graph.node), len(slim.graph.node))


def _restore_inputs(slim: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Put back inputs that onnxslim dropped, and the order they had."""
    initial = {tensor.name for tensor in slim.graph.initializer}
    inputs = list(model.graph.input)
    defaults = {tensor.name: tensor for tensor in model.graph.initializer}
    slim.graph.ClearField('input')
    slim.graph.input.extend(inputs)
    for value in inputs:
        if value.name in defaults and value.name not in initial:
            slim.graph.initializer.append(defaults[value.name])


def _check_ends(slim: onnx.ModelProto, model: onnx.ModelProto) -> None:
    for field in ('input', 'output'):
        expected, got = (
            [(value.name, value.type.tensor_type.elem_type) for value in getattr(graph.graph, field)]
            for graph in (model, slim)
        )
        if expected != got:
            raise ExportError(
                f'onnxslim changed the {field}s: got {[name for name, _ in got]}, expected '
                f'{[name for name, _ in expected]} of the same types; try fold'
            )
