"""A graph as a tree of the modules that its nodes were exported from. Needs onnx only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import onnx

from mmdeploy_ext.graph import flops
from mmdeploy_ext.graph.io import modules, types
from mmdeploy_ext.graph.show.summary import parameter_sizes


@dataclasses.dataclass
class Branch:
    """A module, or a part of a module's name, '' for the whole model: what it and its children hold.

    Attributes:
        own: nodes that are in none of its children, by operator.
        parameters: elements of the weights that its nodes read, counted where they are read first.
        unknown: nodes whose FLOPs are not known because their shapes are open.
    """

    name: str
    nodes: int = 0
    own: dict[str, int] = dataclasses.field(default_factory=dict)
    parameters: int = 0
    flops: int = 0
    unknown: int = 0
    children: dict[str, Branch] = dataclasses.field(default_factory=dict)


def build(model: onnx.ModelProto) -> Branch:
    """Return the tree of modules of a model."""
    kinds = types.infer(model)
    cost = flops.count(model, kinds)
    sizes = parameter_sizes(model.graph)
    root, seen = Branch(''), set()
    for position, (scope, _) in enumerate(modules.module_scopes(model)):
        node = model.graph.node[position]
        new = {name for name in node.input if name in sizes} - seen
        seen |= new
        amount = sum(sizes[name] for name in new)
        branch = root
        _add(branch, amount, cost.get(position, 0))
        for word in filter(None, scope.split('.')):
            branch = branch.children.setdefault(word, Branch(word))
            _add(branch, amount, cost.get(position, 0))
        branch.own[node.op_type] = branch.own.get(node.op_type, 0) + 1
    return root


def _add(branch: Branch, parameters: int, cost: int | None) -> None:
    branch.nodes += 1
    branch.parameters += parameters
    branch.flops += cost or 0
    branch.unknown += cost is None


def lines(root: Branch, depth: int | None = None) -> Iterator[str]:
    """Yield the tree as text, a module per line, down to `depth` levels below the root; None: all."""
    rows = list(_rows(root, depth, '', ''))
    width = max((len(title) for title, _ in rows), default=0)
    numbers, shown = [_numbers(branch) for _, branch in rows], {id(branch) for _, branch in rows}
    columns = [max(len(row[at]) for row in numbers) for at in range(3)]
    for (title, branch), row in zip(rows, numbers, strict=True):
        cells = '  '.join(f'{cell:>{size}}' for cell, size in zip(row, columns, strict=True))
        children = [id(child) for child in branch.children.values()]
        operators = branch.own if not children or children[0] in shown else {}
        words = ', '.join(f'{name} {many}' if many > 1 else name for name, many in operators.items())
        yield f'{title:<{width}}  {cells}  {words}'.rstrip()


def _numbers(branch: Branch) -> tuple[str, str, str]:
    cost = flops.text(branch.flops) if branch.flops else ''
    cost += ' + ?' if branch.flops and branch.unknown else '?' if branch.unknown else ''
    return f'{branch.nodes} nodes', f'{branch.parameters:,} par' if branch.parameters else '', cost


def _rows(branch: Branch, depth: int | None, stem: str, lead: str) -> Iterator[tuple[str, Branch]]:
    yield lead + (branch.name or 'model'), branch
    if depth == 0:
        return
    deeper, children = None if depth is None else depth - 1, list(branch.children.values())
    for child in children:
        line, corner = ('   ', '└─ ') if child is children[-1] else ('│  ', '├─ ')
        yield from _rows(child, deeper, stem + line, stem + corner)


def as_json(branch: Branch) -> dict[str, Any]:
    """Return the tree as plain JSON types."""
    content = dataclasses.asdict(branch)
    content['children'] = [as_json(child) for child in branch.children.values()]
    return content
