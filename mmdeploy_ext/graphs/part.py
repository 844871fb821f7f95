"""A part of a graph as a model. Needs onnx only."""

from collections.abc import Iterable, Sequence

import onnx

from mmdeploy_ext.graphs.io.index import Index, bodies, reads


def part(
    index: Index,
    positions: Sequence[int],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Return a model of some nodes, with the constants and functions that they use, unchecked.

    - `positions`: ascending.
    - `inputs`: replace an initializer of the same name, and an output of one of the nodes.
    - `outputs`: tensors that the nodes write.
    """
    source, model = index.model, onnx.ModelProto()
    for field in ('ir_version', 'producer_name', 'producer_version', 'domain', 'model_version', 'doc_string'):
        if source.HasField(field):
            setattr(model, field, getattr(source, field))
    for field in ('opset_import', 'metadata_props', 'functions'):
        getattr(model, field).extend(getattr(source, field))
    graph = model.graph
    graph.name = source.graph.name or 'graph'
    if source.graph.HasField('doc_string'):
        graph.doc_string = source.graph.doc_string
    graph.metadata_props.extend(source.graph.metadata_props)
    graph.node.extend(index.nodes[position] for position in positions)
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    drop_functions(model)

    input_names = {value.name for value in graph.input}
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name in input_names:
                unused = f'{name}_unused'
                while unused in index.tensors:
                    unused += '_'
                node.output[place] = unused
    output_names = {value.name for value in graph.output}
    used = {name for node in graph.node for name in reads(node)} | output_names
    constants = used - input_names
    inner = used | {name for node in graph.node for name in node.output}
    inner -= input_names | output_names
    source_graph = source.graph
    graph.initializer.extend(tensor for tensor in source_graph.initializer if tensor.name in constants)
    graph.value_info.extend(value for value in source_graph.value_info if value.name in inner)
    return model


def drop_functions(model: onnx.ModelProto) -> None:
    """Remove the functions that no node calls, directly or through another function, in place."""
    unused = {(function.domain, function.name, function.overload): function for function in model.functions}
    waiting = list(model.graph.node)
    while waiting:
        node = waiting.pop()
        called = unused.pop((node.domain, node.op_type, node.overload), None)
        waiting.extend(inner for body in bodies(node) for inner in body.node)
        waiting.extend(called.node if called is not None else ())
    for function in unused.values():
        model.functions.remove(function)
