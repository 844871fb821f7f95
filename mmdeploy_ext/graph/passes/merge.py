"""Concatenate models that hand tensors to each other by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from mmdeploy_ext.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Sequence


def _rename_graph(graph: onnx.GraphProto, prefix: str, kept: frozenset[str]) -> None:
    """Put `prefix` before every node and value name that is not in `kept`, sub-graphs included."""

    def prefixed(name: str) -> str:
        return f'{prefix}/{name.lstrip("/")}' if name else name

    def renamed(name: str) -> str:
        return name if name in kept else prefixed(name)

    for initializer in graph.initializer:
        initializer.name = renamed(initializer.name)
    for node in graph.node:
        node.name = prefixed(node.name)
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField('g') else []) + list(attribute.graphs):
                for value in (*inner.input, *inner.output):
                    value.name = renamed(value.name)
                _rename_graph(inner, prefix, kept)


def concatenate(
    models: Sequence[onnx.ModelProto], prefixes: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Merge models into one: an input of a model is the output of an earlier model with the same name.

    Inputs that no earlier model gives become graph inputs; models may share them. One model alone is
    renamed likewise, so that names do not depend on how many stages there are.

    Args:
        models: in the order of execution; the same opset and no functions.
        prefixes: one per model, put before the names of its nodes and inner values.
        outputs: names of the outputs of the merged graph.

    Raises:
        ExportError: the opsets differ, or an output is given by no model.
    """
    opsets = {
        tuple(sorted((entry.domain, entry.version) for entry in model.opset_import)) for model in models
    }
    if len(opsets) > 1:
        raise ExportError(f'the stages were written with different opsets: {sorted(opsets)}')
    merged = onnx.ModelProto()
    merged.CopyFrom(models[0])
    for field in ('node', 'initializer', 'input', 'output', 'value_info'):
        merged.graph.ClearField(field)
    given: dict[str, onnx.ValueInfoProto] = {}
    for model, prefix in zip(models, prefixes, strict=True):
        graph = onnx.GraphProto()
        graph.CopyFrom(model.graph)
        interface = frozenset(value.name for value in (*graph.input, *graph.output))
        _rename_graph(graph, prefix, interface)
        for value in graph.input:
            if value.name not in given:
                given[value.name] = value
                merged.graph.input.append(value)
        given.update((value.name, value) for value in graph.output)
        merged.graph.node.extend(graph.node)
        merged.graph.initializer.extend(graph.initializer)
        merged.ir_version = max(merged.ir_version, model.ir_version)
    missing = [name for name in outputs if name not in given]
    if missing:
        raise ExportError(f'outputs {missing} are given by no stage; there are {sorted(given)}')
    merged.graph.output.extend(given[name] for name in outputs)
    merged.graph.name = 'mm2onnx'
    return merged
