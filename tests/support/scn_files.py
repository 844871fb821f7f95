"""Files of the libspconv dialect for tests: the goldens' node lists, with weights of our own."""

import functools

import numpy as np
import onnx

import scn_goldens

NODES = scn_goldens.ROOTS[0] / 'nodes'
MEANT = np.random.default_rng(4)


def golden_names() -> list[str]:
    """Return the names of the node lists in the repository."""
    return sorted(path.stem for path in NODES.glob('*.json'))


@functools.lru_cache(maxsize=4)
def _golden(name: str) -> onnx.ModelProto:
    content = scn_goldens.node_list(name)
    graph = onnx.GraphProto(name='scn')
    graph.node.extend(_node(entry) for entry in content['nodes'])
    for entry in content['initializers']:
        values = MEANT.standard_normal(entry['dims']).astype(np.float16)
        graph.initializer.append(onnx.numpy_helper.from_array(values, entry['name']))
    for entries, target in ((content['inputs'], graph.input), (content['outputs'], graph.output)):
        for entry in entries:
            target.append(
                onnx.helper.make_tensor_value_info(entry['name'], onnx.TensorProto.FLOAT16, entry['shape'])
            )
    return onnx.ModelProto(ir_version=8, graph=graph, opset_import=[onnx.helper.make_opsetid('ai.onnx', 11)])


def golden_model(name: str) -> onnx.ModelProto:
    """Return a protobuf with the nodes of a golden and small random float16 weights."""
    model = onnx.ModelProto()
    model.CopyFrom(_golden(name))
    return model


def _node(entry: dict) -> onnx.NodeProto:
    node = onnx.NodeProto(
        op_type=entry['op_type'], name=entry['name'], input=entry['inputs'], output=entry['outputs']
    )
    for name, value in entry['attributes'].items():
        set_attribute(node, name, value['value'], value['type'])
    return node


def set_attribute(node: onnx.NodeProto, name: str, value: object, kind: str = '') -> None:
    """Set an attribute, also to a type that does not suit it; None takes it away."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    if value is not None:
        attribute = onnx.AttributeProto(name=name)
        kind = kind or next(
            (
                old
                for entry in node.attribute
                if entry.name == name
                for old in [onnx.AttributeProto.AttributeType.Name(entry.type)]
            ),
            'INT',
        )
        attribute.type = onnx.AttributeProto.AttributeType.Value(kind)
        field = {'INT': 'i', 'FLOAT': 'f', 'STRING': 's', 'INTS': 'ints', 'FLOATS': 'floats'}[kind]
        if kind.endswith('S'):
            getattr(attribute, field).extend(value)
        else:
            setattr(attribute, field, value.encode() if kind == 'STRING' else value)
        kept.append(attribute)
    del node.attribute[:]
    node.attribute.extend(kept)


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """Return a node by name."""
    return next(node for node in model.graph.node if node.name == name)
