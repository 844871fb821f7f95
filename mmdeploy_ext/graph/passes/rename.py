"""Other names for tensors and nodes."""

import collections
import copy
import itertools
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

    - `tensors` and `nodes` map an old name to a new one; a node without a name is '#12'. Names swap when
      both ways are asked for.
    - `prefix` goes before the names of all nodes and of all tensors but the graph's inputs and outputs;
      names that begin with it already are left alone.
    - `fill` gives nodes without a name one: operator and position, e.g. 'Conv_12'.
    Does not fire on a name that is gone while the new one is there: the second run changes nothing.
    Metadata of this project goes when an input or output gets another name.

    Raises:
        UsageError: an unknown name, or a new name that another tensor or node has.
    """
    result = copy.deepcopy(model)
    index = Index(result)
    names = {node.name for node in index.nodes}
    known = names.union(f'#{at}' for at in range(len(index.nodes)))
    new_nodes = {index.find_node(old): new for old, new in _open(nodes, known, prefix).items()}
    new_tensors = _open(tensors, set(index.tensors), prefix)
    for name in new_tensors:
        index.check_tensor(name)
    _check_new(new_tensors, set(_all_tensor_names(result)), 'tensor')
    _check_new({index.nodes[at].name or f'#{at}': new for at, new in new_nodes.items()}, names, 'node')
    for at, new in new_nodes.items():
        index.nodes[at].name = new
    if fill:
        _fill(index)
    rename_tensors(result.graph, lambda name: new_tensors.get(name, name))
    if prefix:
        _prefix(result, prefix)
    if {*index.inputs, *index.outputs} & new_tensors.keys():
        drop_metadata(result)
    return result


def _open(wanted: Mapping[str, str] | None, present: set[str], prefix: str) -> dict[str, str]:
    """Return the renamings that are not done yet."""
    found = {}
    for old, new in (wanted or {}).items():
        if not new:
            raise UsageError(f'new name of {old!r}: is empty')
        if old != new and (old in present or present.isdisjoint((new, prefix + new))):
            found[old] = new
    return found


def _check_new(renamed: Mapping[str, str], present: set[str], what: str) -> None:
    """Refuse two names that would become one."""
    kept = present - renamed.keys()
    counts = collections.Counter(renamed.values())
    for old, new in renamed.items():
        if new in kept or counts[new] > 1:
            raise UsageError(f'{what} {old!r} cannot be called {new!r}: another {what} has that name')


def _all_tensor_names(model: onnx.ModelProto) -> list[str]:
    """Return the names of every tensor of the main graph and of the bodies in it."""
    graphs = [*all_graphs(model.graph)]
    names = [value.name for graph in graphs for value in (*graph.input, *graph.initializer)]
    return names + [name for graph in graphs for node in graph.node for name in writes(node)]


def rename_tensors(graph: onnx.GraphProto, new: Callable[[str], str]) -> None:
    """Give every tensor of a graph and of the bodies in it another name, in place; '' stays."""

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
    """Give every node of a graph and of the bodies in it another name, in place."""
    for node in graph.node:
        node.name = new(node.name)
        for body in bodies(node):
            rename_nodes(body, new)


def _prefix(model: onnx.ModelProto, prefix: str) -> None:
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)}

    def prefixed(name: str) -> str:
        return name if not name or name.startswith(prefix) else f'{prefix}{name.lstrip("/")}'

    new = {name: prefixed(name) for name in {*_all_tensor_names(model)} - kept}
    taken = collections.Counter([*new.values(), *kept])
    clash = next((name for name in sorted(new) if taken[new[name]] > 1), None)
    if clash is not None:
        raise UsageError(f'--prefix {prefix}: tensor {clash!r} would get a name that another one has')
    rename_tensors(graph, lambda name: new.get(name, name))
    rename_nodes(graph, prefixed)


def _fill(index: Index) -> None:
    """Name nodes that have no name by operator and position."""
    taken = {node.name for node in index.nodes}
    for position, node in enumerate(index.nodes):
        if not node.name:
            names = (f'{node.op_type}_{position}' + f'_{more}' * bool(more) for more in itertools.count())
            node.name = next(name for name in names if name not in taken)
            taken.add(node.name)
