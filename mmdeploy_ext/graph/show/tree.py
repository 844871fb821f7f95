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
    """A module of the tree: its numbers, but for `operators`, are of all nodes in it and in its children.

    Attributes:
        name: last part of the module's name, '' for the whole model.
        nodes: number of nodes.
        operators: op_type -> number of nodes, without those of its children.
        parameters: elements of the weights that its nodes read; a weight counts at its first reader.
        flops: sum of the FLOPs of its convolutions and matrix products whose number is known.
        unknown: number of nodes whose FLOPs are not known, see `flops.count`.
        children: last part of the name -> module inside of it.
    """

    name: str
    nodes: int = 0
    operators: dict[str, int] = dataclasses.field(default_factory=dict)
    parameters: int = 0
    flops: int = 0
    unknown: int = 0
    children: dict[str, Branch] = dataclasses.field(default_factory=dict)


def build(model: onnx.ModelProto) -> Branch:
    """Return the tree of modules of a model: the root, which stands for the whole of it.

    Modules are those of `modules.module_scopes`; nodes of unknown modules count at the root alone, nodes of
    bodies and functions not at all.
    """
    node_flops = flops.count(model, types.infer(model))
    sizes = parameter_sizes(model.graph)
    root, counted = Branch(''), set()
    for position, (scope, _) in enumerate(modules.module_scopes(model)):
        node = model.graph.node[position]
        new = {name for name in node.input if name in sizes} - counted
        counted |= new
        branches = [root]
        for word in filter(None, scope.split('.')):
            branches.append(branches[-1].children.setdefault(word, Branch(word)))
        cost = node_flops.get(position, 0)
        for branch in branches:
            branch.nodes += 1
            branch.parameters += sum(sizes[name] for name in new)
            branch.flops += cost or 0
            branch.unknown += cost is None
        operators = branches[-1].operators
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return root


def lines(root: Branch, depth: int | None = None) -> Iterator[str]:
    """Yield the tree as text, a module per line, down to `depth` levels below the root; None for all levels.

    A line has name, nodes, parameters and FLOPs of a module, and its own operators unless `depth` cuts off
    its children. '?' stands for nodes whose FLOPs are not known; the root is called 'model'.
    """
    rows = list(_rows(root, depth, '', ''))
    printed = {id(branch) for _, branch in rows}
    numbers = []
    for _, branch in rows:
        cost = flops.text(branch.flops) if branch.flops else ''
        if branch.unknown:
            cost = f'{cost} + ?' if cost else '?'
        parameters = f'{branch.parameters:,} par' if branch.parameters else ''
        numbers.append((f'{branch.nodes} nodes', parameters, cost))
    width = max((len(title) for title, _ in rows), default=0)
    columns = [max(len(row[column]) for row in numbers) for column in range(3)]
    for (title, branch), row in zip(rows, numbers, strict=True):
        cells = '  '.join(f'{cell:>{size}}' for cell, size in zip(row, columns, strict=True))
        children = branch.children.values()
        operators = {}
        if not children or any(id(child) in printed for child in children):
            operators = branch.operators
        words = ', '.join(f'{name} {count}' if count > 1 else name for name, count in operators.items())
        yield f'{title:<{width}}  {cells}  {words}'.rstrip()


def _rows(branch: Branch, depth: int | None, stem: str, lead: str) -> Iterator[tuple[str, Branch]]:
    """Yield title and branch of each line; `lead` is drawn before the name, `stem` before its children."""
    yield lead + (branch.name or 'model'), branch
    if depth == 0:
        return
    deeper, children = None if depth is None else depth - 1, list(branch.children.values())
    for child in children:
        line, corner = ('   ', '└─ ') if child is children[-1] else ('│  ', '├─ ')
        yield from _rows(child, deeper, stem + line, stem + corner)


def as_json(branch: Branch) -> dict[str, Any]:
    """Return the tree as plain JSON types: the attributes of `Branch`, `own` being its `operators`."""
    return dict(
        name=branch.name,
        nodes=branch.nodes,
        own=branch.operators,
        parameters=branch.parameters,
        flops=branch.flops,
        unknown=branch.unknown,
        children=[as_json(child) for child in branch.children.values()],
    )
