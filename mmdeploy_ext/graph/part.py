"""A part of a graph as a model of its own. Needs onnx only."""

from collections.abc import Iterable, Sequence

import onnx

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.graph.io.index import Index, bodies, reads, refill


def part(
    index: Index,
    positions: Sequence[int],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Return a model of some nodes of a graph, ascending, and of the constants and functions that they use.

    A constant of the name of one of the `inputs` becomes an input.
    """
    source, model = index.model, onnx.ModelProto()
    for name in ('ir_version', 'producer_name', 'producer_version', 'domain', 'model_version', 'doc_string'):
        if source.HasField(name):
            setattr(model, name, getattr(source, name))
    for name in ('opset_import', 'metadata_props', 'functions'):
        getattr(model, name).extend(getattr(source, name))
    graph = model.graph
    graph.name = source.graph.name or 'graph'
    if source.graph.HasField('doc_string'):
        graph.doc_string = source.graph.doc_string
    graph.metadata_props.extend(source.graph.metadata_props)
    graph.node.extend(index.nodes[position] for position in positions)
    graph.input.extend(inputs)
    graph.output.extend(outputs)
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
    unused = {(function.domain, function.name): function for function in model.functions}
    waiting = list(model.graph.node)
    while waiting:
        node = waiting.pop()
        called = unused.pop((node.domain, node.op_type), None)
        waiting.extend(inner for body in bodies(node) for inner in body.node)
        waiting.extend(called.node if called is not None else ())
    for function in unused.values():
        model.functions.remove(function)


def drop_metadata(model: onnx.ModelProto) -> None:
    """Remove what this project's metadata says of the whole graph."""
    refill(model, metadata_props=[one for one in model.metadata_props if not one.key.startswith(PREFIX)])
