"""Which module of the PyTorch model a node came from, and the graph as a tree of modules. Needs onnx only.

Three sources, tried in this order:
- metadata of the torch.export-based exporter: `pkg.torch.onnx.name_scopes`;
- node names of the TorchScript exporter: '/backbone/layer1/layer1.0/conv1/Conv';
- names of weights: a node that reads 'backbone.stem.conv.weight' belongs to 'backbone.stem.conv'. Older
  exporters ('Conv_12') and other frameworks leave no more than that.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.graph import flops
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.show.summary import parameter_sizes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import onnx

SCOPES = 'pkg.torch.onnx.name_scopes'
SOURCES = {
    'metadata': 'exporter metadata',
    'names': 'node names',
    'weights': 'names of weights',
    '': 'nothing in the file',
}


@dataclasses.dataclass
class Branch:
    """A module, or a part of a module's name: what it and its children hold.

    Attributes:
        name: last part of the module's name; '' for the whole model.
        nodes: nodes in it, its children's included.
        own: nodes that are in none of its children, by operator.
        parameters: elements of the weights that its nodes read, counted where they are read first.
        flops: 2 per multiply-add.
        unknown: nodes whose FLOPs are not known because their shapes are open.
        children: by name, in the order of the graph.
    """

    name: str
    nodes: int = 0
    own: dict[str, int] = dataclasses.field(default_factory=dict)
    parameters: int = 0
    flops: int = 0
    unknown: int = 0
    children: dict[str, Branch] = dataclasses.field(default_factory=dict)


def module_scopes(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Return (module name, source) per node of the main graph, e.g. ('backbone.layer1.0.conv1', 'names').

    The names are those of `named_modules` of what was exported; the stages that this project merges come
    first ('network.backbone...'). ('', '') where no source says anything.
    """
    return [module_of(node) for node in model.graph.node]


def sources(model: onnx.ModelProto) -> dict[str, int]:
    """Return source -> how many nodes have their module from it, most first; see `SOURCES`."""
    return dict(collections.Counter(source for _, source in module_scopes(model)).most_common())


def module_of(node: onnx.NodeProto) -> tuple[str, str]:
    """Return (module name, source) of one node; see `module_scopes`."""
    listed = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
    if listed is not None:
        return _from_metadata(listed), 'metadata'
    if '/' in node.name:
        return from_name(node.name), 'names'
    for name in node.input:
        if '.' in name and name.rpartition('.')[2] in (
            'weight',
            'bias',
            'running_mean',
            'gamma',
            'in_proj_weight',
        ):
            return name.rpartition('.')[0], 'weights'
    return '', ''


def _from_metadata(listed: str) -> str:
    """Return the module of a list of scopes, whose last entry is the operation itself."""
    try:
        scopes = ast.literal_eval(listed)
    except (ValueError, SyntaxError):
        return ''
    if not isinstance(scopes, list) or len(scopes) < 2:
        return ''
    return str(scopes[-2])


def from_name(name: str) -> str:
    """Return the module that a TorchScript node name says.

    '/layer1/layer1.0/conv1/Conv' -> 'layer1.0.conv1': members of a Sequential repeat its name.
    """
    return '.'.join(without_repetition(name.split('/')[:-1]))


def without_repetition(parts: Iterable[str]) -> list[str]:
    """Drop containers that the next part repeats: layer1/layer1.0 is layer1.0."""
    words: list[str] = []
    for part in filter(None, parts):
        if words and part.startswith(f'{words[-1]}.'):
            words.pop()
        words.append(part)
    return words


def build(model: onnx.ModelProto) -> Branch:
    """Return the tree of modules of a model."""
    kinds = types.infer(model)
    cost = flops.count(model, kinds)
    sizes = parameter_sizes(model.graph)
    root, seen = Branch(''), set()
    for position, (scope, _) in enumerate(module_scopes(model)):
        node = model.graph.node[position]
        new = {name for name in node.input if name in sizes} - seen
        seen |= new
        amount = sum(sizes[name] for name in new)
        branch = root
        _add(branch, amount, cost, position)
        for word in scope.split('.') if scope else ():
            branch = branch.children.setdefault(word, Branch(word))
            _add(branch, amount, cost, position)
        branch.own[node.op_type] = branch.own.get(node.op_type, 0) + 1
    return root


def _add(branch: Branch, parameters: int, cost: flops.Cost, position: int) -> None:
    branch.nodes += 1
    branch.parameters += parameters
    branch.flops += cost.nodes.get(position) or 0
    branch.unknown += position in cost.nodes and cost.nodes[position] is None


def lines(root: Branch, depth: int | None = None) -> Iterator[str]:
    """Yield the tree for people, a module per line.

    Args:
        root: of the tree.
        depth: levels below the root to print; None: all.
    """
    rows = list(_rows(root, depth, '', ''))
    width = max((len(title) for title, _ in rows), default=0)
    numbers = [_numbers(branch) for _, branch in rows]
    columns = [max(len(row[at]) for row in numbers) for at in range(3)]
    for (title, branch), row in zip(rows, numbers, strict=True):
        cells = '  '.join(f'{cell:>{size}}' for cell, size in zip(row, columns, strict=True))
        hidden = depth is not None and branch.children and not _shown(branch, rows)
        operators = {} if hidden else branch.own
        words = ', '.join(f'{name} {many}' if many > 1 else name for name, many in operators.items())
        yield f'{title:<{width}}  {cells}  {words}'.rstrip()


def _shown(branch: Branch, rows: list[tuple[str, Branch]]) -> bool:
    first = next(iter(branch.children.values()))
    return any(row is first for _, row in rows)


def _numbers(branch: Branch) -> tuple[str, str, str]:
    cost = flops.text(branch.flops) if branch.flops else ''
    cost += ' + ?' if branch.flops and branch.unknown else '?' if branch.unknown else ''
    return f'{branch.nodes} nodes', f'{branch.parameters:,} par' if branch.parameters else '', cost


def _rows(branch: Branch, depth: int | None, stem: str, lead: str) -> Iterator[tuple[str, Branch]]:
    yield lead + (branch.name or 'model'), branch
    if depth == 0:
        return
    children = list(branch.children.values())
    for child in children:
        last = child is children[-1]
        deeper = None if depth is None else depth - 1
        yield from _rows(child, deeper, stem + ('   ' if last else '│  '), stem + ('└─ ' if last else '├─ '))


def as_json(branch: Branch) -> dict[str, Any]:
    """Return the tree as plain JSON types."""
    content = dataclasses.asdict(branch)
    content['children'] = [as_json(child) for child in branch.children.values()]
    return content
