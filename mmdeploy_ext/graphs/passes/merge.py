"""Concatenate models that pass tensors to each other by name."""

from collections.abc import Collection, Sequence

import onnx

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.graphs.io.index import refill
from mmdeploy_ext.graphs.passes.rename import rename_nodes, rename_tensors


def concatenate(
    models: Sequence[onnx.ModelProto], prefixes: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Merge models into one: an input of a model is the output of an earlier model with the same name.

    The first model becomes the result, and the others are changed: a copy of large weights is gigabytes.

    Args:
        models: in the order of execution, with the same opset of each domain.
        prefixes: one per model, put with '/' before the names of its nodes and inner values.
        outputs: outputs of the merged graph: outputs of the models, or inputs that are passed through.
    """
    merged = models[0]
    opsets = {entry.domain: entry.version for entry in merged.opset_import}
    for entry in (entry for model in models[1:] for entry in model.opset_import):
        if entry.domain not in opsets:
            merged.opset_import.append(entry)
        first = opsets.setdefault(entry.domain, entry.version)
        if first != entry.version:
            raise ExportError(
                f'the stages were written with different opsets of {entry.domain!r}: {first}, {entry.version}'
            )
    graph = merged.graph
    _add_prefix(graph, prefixes[0])
    graph.ClearField('value_info')
    values = {value.name: value for value in (*graph.input, *graph.output)}
    produced = {value.name for value in graph.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for model, prefix in zip(models[1:], prefixes[1:], strict=True):
        added = model.graph
        _add_prefix(added, prefix)
        for value in added.input:
            if value.name not in values:
                values[value.name] = value
                graph.input.append(value)
        graph.initializer.extend(_new_constants(constants, added, produced))
        values.update((value.name, value) for value in added.output)
        produced.update(value.name for value in added.output)
        graph.node.extend(added.node)
        merged.ir_version = max(merged.ir_version, model.ir_version)
    missing = [name for name in outputs if name not in values]
    if missing:
        raise ExportError(f'no stage has the outputs {missing}; there are {sorted(values)}')
    refill(graph, output=[values[name] for name in outputs])
    graph.name = 'mm2onnx'
    return merged


def _new_constants(
    constants: dict[str, onnx.TensorProto], graph: onnx.GraphProto, produced: Collection[str]
) -> list[onnx.TensorProto]:
    added = []
    for tensor in graph.initializer:
        if tensor.name in produced:
            continue
        if tensor.name not in constants:
            constants[tensor.name] = tensor
            added.append(tensor)
        elif constants[tensor.name] != tensor:
            raise ExportError(f'the input {tensor.name!r} has different defaults in two of the models')
    return added


def _add_prefix(graph: onnx.GraphProto, prefix: str) -> None:
    ends = {value.name for value in (*graph.input, *graph.output)}

    def prefixed(name: str) -> str:
        return f'{prefix}/{name.lstrip("/")}' if name else name

    rename_tensors(graph, lambda name: name if name in ends else prefixed(name))
    rename_nodes(graph, prefixed)
