"""Concatenate models that pass tensors to each other by name.

`onnx.compose.merge_models` takes two at a time, and makes two inputs of one that both read (`a/x`, `b/x`);
its prefixes give the nodes of exporters two slashes (`network//backbone/Conv`) and inputs with a default
another name than their default.
"""

import copy
from collections.abc import Collection, Sequence

import onnx

from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.graph.io.index import refill
from mmdeploy_ext.graph.passes.rename import rename_nodes, rename_tensors


def concatenate(
    models: Sequence[onnx.ModelProto], prefixes: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Merge models into one: an input of a model is the output of an earlier model with the same name.

    Inputs that no earlier model gives become graph inputs; models may share them, and the default that one of
    them states is that of all. The default of an input is left out where an earlier model gives the tensor.
    One model alone is renamed likewise, so that names do not depend on how many stages there are.

    Metadata and functions are those of the first model; functions of others are left out. The result is not
    checked: `files.save` refuses one in which two tensors have one name.

    Args:
        models: models in the order of execution, at least one, with the same opsets; they stay as they are.
        prefixes: one per model, put with '/' before the names of its nodes and inner values.
        outputs: names of the merged graph's outputs, which are outputs of the models, or inputs that are
            passed through.

    Raises:
        ExportError: the opsets differ, an output is the name of no model's output or input, or an input has
            two defaults.
    """
    opsets = {
        tuple(sorted((entry.domain, entry.version) for entry in model.opset_import)) for model in models
    }
    if len(opsets) > 1:
        raise ExportError(f'the stages were written with different opsets: {sorted(opsets)}')
    merged = copy.deepcopy(models[0])  # into which the others are put: it may have most of the weights
    graph = merged.graph
    _add_prefix(graph, prefixes[0])
    graph.ClearField('value_info')
    values = {value.name: value for value in (*graph.input, *graph.output)}
    produced = {value.name for value in graph.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for model, prefix in zip(models[1:], prefixes[1:], strict=True):
        added = copy.deepcopy(model.graph)
        _add_prefix(added, prefix)
        for value in added.input:
            if value.name not in values:
                values[value.name] = value
                graph.input.append(value)
        graph.initializer.extend(_new_constants(constants, added, produced))
        values.update((value.name, value) for value in added.output)
        produced.update(value.name for value in added.output)
        for field in ('node', 'quantization_annotation'):
            getattr(graph, field).extend(getattr(added, field))
        merged.ir_version = max(merged.ir_version, model.ir_version)
    missing = [name for name in outputs if name not in values]
    if missing:
        raise ExportError(f'outputs {missing} are given by no stage; there are {sorted(values)}')
    refill(graph, output=[values[name] for name in outputs])
    graph.name = 'mm2onnx'
    return merged


def _new_constants(
    constants: dict[str, onnx.TensorProto], graph: onnx.GraphProto, produced: Collection[str]
) -> list[onnx.TensorProto]:
    """Return the initializers of a graph that `constants` lacks, and add them to it by name.

    Defaults of what is `produced` are left out. ExportError: an input has another default in `constants`.
    """
    added = []
    for tensor in graph.initializer:
        if tensor.name in produced:
            continue
        if tensor.name not in constants:
            constants[tensor.name] = tensor
            added.append(tensor)
        elif constants[tensor.name] != tensor:
            raise ExportError(f'the input {tensor.name!r} has another default in another model')
    return added


def _add_prefix(graph: onnx.GraphProto, prefix: str) -> None:
    """Put a prefix before every name but those of the graph's inputs and outputs, sub-graphs included."""
    ends = {value.name for value in (*graph.input, *graph.output)}

    def prefixed(name: str) -> str:
        return f'{prefix}/{name.lstrip("/")}' if name else name

    rename_tensors(graph, lambda name: name if name in ends else prefixed(name))
    rename_nodes(graph, prefixed)
