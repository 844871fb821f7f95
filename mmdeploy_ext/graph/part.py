"""A part of a graph as a model of its own. Needs onnx only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.graph.io.index import Index, all_graphs, reads


def part(
    index: Index,
    positions: Sequence[int],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Return a model of some nodes of a graph and of the constants and functions that they use.

    Args:
        index: of the whole graph.
        positions: nodes to keep, ascending.
        inputs: inputs of the new graph; a constant of that name becomes an input.
        outputs: its outputs.
    """
    source, model = index.model, onnx.ModelProto()
    for name in ('ir_version', 'producer_name', 'producer_version', 'domain', 'model_version', 'doc_string'):
        if source.HasField(name):
            setattr(model, name, getattr(source, name))
    model.opset_import.extend(source.opset_import)
    model.metadata_props.extend(source.metadata_props)
    graph = model.graph
    graph.name = source.graph.name or 'graph'
    if source.graph.HasField('doc_string'):
        graph.doc_string = source.graph.doc_string
    graph.metadata_props.extend(source.graph.metadata_props)
    graph.node.extend(index.nodes[position] for position in positions)
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    model.functions.extend(source.functions)
    drop_functions(model)
    _copy_values(source.graph, graph)
    return model


def _copy_values(source: onnx.GraphProto, graph: onnx.GraphProto) -> None:
    """Copy the constants and types of what the nodes of `graph` read and write."""
    given = {value.name for value in graph.input}
    read = {name for node in graph.node for name in reads(node)} | {value.name for value in graph.output}
    known = read | {name for node in graph.node for name in node.output}
    ends = given | {value.name for value in graph.output}
    graph.initializer.extend(value for value in source.initializer if value.name in read - given)
    graph.sparse_initializer.extend(
        value for value in source.sparse_initializer if value.values.name in read - given
    )
    graph.value_info.extend(value for value in source.value_info if value.name in known - ends)
    graph.quantization_annotation.extend(
        value for value in source.quantization_annotation if value.tensor_name in known
    )


def drop_functions(model: onnx.ModelProto) -> None:
    """Remove the functions that no node calls, directly or through another function."""
    by_name = {(function.domain, function.name): function for function in model.functions}
    kept, waiting = set(), [model.graph]
    while waiting:
        body = waiting.pop()
        holder = onnx.ModelProto(graph=body) if isinstance(body, onnx.GraphProto) else None
        graphs = all_graphs(holder) if holder else [body]
        for name in {(node.domain, node.op_type) for graph in graphs for node in graph.node}:
            if name in by_name and name not in kept:
                kept.add(name)
                waiting.append(by_name[name])
    for function in [function for name, function in by_name.items() if name not in kept]:
        model.functions.remove(function)


def drop_metadata(model: onnx.ModelProto) -> list[str]:
    """Remove what this project's metadata says of the whole graph; returns the keys."""
    removed = [entry for entry in model.metadata_props if entry.key.startswith(PREFIX)]
    for entry in removed:
        model.metadata_props.remove(entry)
    return [entry.key for entry in removed]
