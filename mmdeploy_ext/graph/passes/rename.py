"""Other names for tensors and nodes.

`onnx.compose.add_prefix` puts one prefix before every name; onnx-ir renames by setting a name, and what it
writes is another file (see `graph.io.index`).
"""

import collections
import copy
from collections.abc import Callable, Mapping

import onnx

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io.index import Index, all_graphs, bodies, writes
from mmdeploy_ext.graph.part import drop_metadata


def rename(
    model: onnx.ModelProto,
    tensors: Mapping[str, str] | None = None,
    nodes: Mapping[str, str] | None = None,
    *,
    prefix: str = '',
    fill: bool = False,
) -> onnx.ModelProto:
    """Return a model with other names; nothing that it computes changes.

    - `tensors` and `nodes` map an old name to a new one; '#12' is the node at position 12, such as one
      without a name. Names swap when both ways are asked for.
    - `prefix` goes before the names of all nodes and of all tensors but the graph's inputs and outputs, in
      place of a '/' at their beginning; names that begin with it already are left alone, and so are nodes
      without a name.
    - `fill` gives nodes of the main graph without a name one: operator and position, e.g. 'Conv_12', with the
      prefix before it.
    Does not fire on an old name that is gone while the new one is there: a second run changes nothing, unless
    a new name is an old one, too.
    Metadata of this project is dropped if an input, with a default or not, or an output gets another name.
    Tensors that only a body has get no other name than one with the prefix; functions keep their names. The
    model itself stays as it is.

    Raises:
        UsageError: an unknown name, an empty new one, or a new name that another tensor or node has.
    """
    result = copy.deepcopy(model)
    index = Index(result)
    ends = {value.name for value in (*result.graph.input, *result.graph.output)}
    node_names = {node.name for node in index.nodes}
    node_keys = node_names.union(f'#{position}' for position in range(len(index.nodes)))
    new_node_names = {index.find_node(old): new for old, new in _pending(nodes, node_keys, prefix).items()}
    new_names = _pending(tensors, set(index.tensors), prefix)
    for name in new_names:
        index.check_tensor(name)
    _check_distinct(new_names, set(all_tensor_names(result)), 'tensor')
    old_node_names = {
        index.nodes[position].name or f'#{position}': new for position, new in new_node_names.items()
    }
    _check_distinct(old_node_names, node_names, 'node')
    for position, new in new_node_names.items():
        index.nodes[position].name = new
    if fill:
        _name_nodes(index)
    rename_tensors(result.graph, lambda name: new_names.get(name, name))
    if prefix:
        _add_prefix(result, prefix)
    if ends & new_names.keys():
        drop_metadata(result)
    return result


def _pending(new_names: Mapping[str, str] | None, present: set[str], prefix: str) -> dict[str, str]:
    """Return the renamings that are not done yet."""
    pending = {}
    for old, new in (new_names or {}).items():
        if not new:
            raise UsageError(f'new name of {old!r}: is empty')
        if old != new and (old in present or present.isdisjoint((new, prefix + new))):
            pending[old] = new
    return pending


def _check_distinct(renamed: Mapping[str, str], present: set[str], kind: str) -> None:
    """Refuse two names that would become one."""
    unchanged = present - renamed.keys()
    counts = collections.Counter(renamed.values())
    for old, new in renamed.items():
        if new in unchanged or counts[new] > 1:
            raise UsageError(f'{kind} {old!r} cannot be called {new!r}: another {kind} has that name')


def all_tensor_names(model: onnx.ModelProto) -> list[str]:
    """Return the names of every tensor of the main graph and of the bodies in it, in no order, some twice.

    Outputs that a node leaves out, whose name is '', are not among them.
    """
    graphs = list(all_graphs(model.graph))
    names = [value.name for graph in graphs for value in (*graph.input, *graph.initializer)]
    names += [sparse.values.name for graph in graphs for sparse in graph.sparse_initializer]
    return names + [name for graph in graphs for node in graph.node for name in writes(node)]


def rename_tensors(graph: onnx.GraphProto, new: Callable[[str], str]) -> None:
    """Rename every tensor of a graph and of the bodies in it, in place, also in declarations and annotations.

    `new` returns the new name for an old one; it is not called for '', which stays. That no two tensors get
    one name is the caller's concern.
    """

    def renamed(name: str) -> str:
        return new(name) if name else name

    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = renamed(value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = renamed(sparse.values.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = renamed(annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = renamed(entry.value)
    for node in graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        for body in bodies(node):
            rename_tensors(body, new)


def rename_nodes(graph: onnx.GraphProto, new: Callable[[str], str]) -> None:
    """Rename every node of a graph and of the bodies in it, in place.

    `new` returns the new name for an old one, which is '' for a node without a name.
    """
    for node in graph.node:
        node.name = new(node.name)
        for body in bodies(node):
            rename_nodes(body, new)


def _add_prefix(model: onnx.ModelProto, prefix: str) -> None:
    graph = model.graph
    ends = {value.name for value in (*graph.input, *graph.output)}

    def prefixed(name: str) -> str:
        return name if not name or name.startswith(prefix) else f'{prefix}{name.lstrip("/")}'

    new_names = {name: prefixed(name) for name in {*all_tensor_names(model)} - ends}
    counts = collections.Counter([*new_names.values(), *ends])
    for name in sorted(new_names):
        if counts[new_names[name]] > 1:
            raise UsageError(f'--prefix {prefix}: tensor {name!r} would get a name that another one has')
    rename_tensors(graph, lambda name: new_names.get(name, name))
    rename_nodes(graph, prefixed)


def _name_nodes(index: Index) -> None:
    """Name nodes that have no name by operator and position."""
    used = {node.name for node in index.nodes}
    for position, node in enumerate(index.nodes):
        if not node.name:
            name, number = f'{node.op_type}_{position}', 0
            while name in used:
                number += 1
                name = f'{node.op_type}_{position}_{number}'
            node.name = name
            used.add(name)
