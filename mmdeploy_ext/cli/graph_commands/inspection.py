"""`graph.py show`, `tree` and `draw`: the content of a file, printed and drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.cli.graph_commands.command import Commands, argument, output, write_json
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError, printable
from mmdeploy_ext.core.files import check_writable

if TYPE_CHECKING:
    import argparse

    import onnx


COMMANDS = Commands()
SHAPE = argument(
    '--shape NAME=SIZES...',
    'count at these sizes, e.g. images=1x3x640x640 or batch=1; the file stays as it is',
    [],
)
"""Argument of the subcommands that count FLOPs."""


def _read(args: argparse.Namespace) -> onnx.ModelProto:
    """Read a file, even a broken one, with the shapes of --shape."""
    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.graph.passes import shapes

    model = files.read_shapes(args.file)
    return shapes.set_by_text(model, args.shape) if args.shape else model


@COMMANDS.add(
    'show',
    'Print what is in a file: sparse graphs node by node',
    argument(
        '--nodes PATTERN',
        "also list the nodes, or those whose name, operator or output fits, e.g. Conv or '/head/*'",
        nargs='?',
        const='*',
    ),
    SHAPE,
)
def run_show(args: argparse.Namespace) -> int:
    """Print the content of a file, and with --nodes its nodes, and return 0.

    `args` are the parsed arguments of this command. UsageError: no node fits --nodes, or --shape cannot be
    read or names no input. ModelFileError: the file cannot be read, or its nodes do not take --shape.
    """
    from mmdeploy_ext.graph.show import summary
    from mmdeploy_ext.sparse.show import trace_lines

    model = _read(args)
    content = _describe(model)
    lines = [*summary.lines(content)]
    if 'layers' in content:
        lines += ['', *trace_lines(content['layers'])]
    if args.nodes:
        content['node_list'] = summary.node_rows(model, args.nodes)
        if not content['node_list']:
            raise UsageError(f'--nodes {args.nodes}: no node of {args.file} fits')
        lines += ['', *summary.node_lines(content['node_list'])]
    write_json(args, dict(file=args.file, **content))
    for line in lines:
        print(printable(line))
    return 0


def _describe(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the content of a model; for a sparse one also its nodes as the engine reads them."""
    from mmdeploy_ext.graph.show.summary import describe
    from mmdeploy_ext.sparse.show import sparse_layers

    content = describe(model)
    return {**content, 'layers': sparse_layers(model)} if content['kind'] == 'sparse' else content


@COMMANDS.add(
    'tree',
    'Print the graph as a tree of modules, with parameters and FLOPs',
    argument('--depth N', 'levels to print (default: all)', type=int),
    SHAPE,
)
def run_tree(args: argparse.Namespace) -> int:
    """Print the graph as a tree of modules, to the level --depth, and return 0.

    `args` are the parsed arguments of this command. UsageError: --depth below 0, or --shape cannot be read or
    names no input. ModelFileError: the file cannot be read, or its nodes do not take --shape.
    """
    from mmdeploy_ext.graph.io import modules
    from mmdeploy_ext.graph.show import tree

    cli.check_minimums(args, depth=0)
    model = _read(args)
    sources = modules.sources(model)
    root = tree.build(model)
    write_json(args, dict(file=args.file, sources=sources, tree=tree.as_json(root)))
    for line in tree.lines(root, args.depth):
        print(printable(line))
    print()
    texts = (f'{modules.SOURCES[name]} ({count} nodes)' for name, count in sources.items())
    print(f'modules known by {", ".join(texts)}')
    return 0


@COMMANDS.add(
    'draw',
    'Draw a graph, or what is around a node',
    output('x.svg', 'picture to write: .svg, .png or .pdf'),
    argument('--node NAME', "draw what is around this node: its name, or '#12'"),
    argument('--depth N', 'steps up and down from --node that are drawn (default: 3)', type=int),
)
def run_draw(args: argparse.Namespace) -> int:
    """Draw a graph, sparse or ordinary, or what is around --node, and return 0.

    `args` are the parsed arguments of this command. UsageError: --depth without --node or below 0, --node of
    a sparse graph or that is not there, or a picture that cannot be written. ModelFileError: the file cannot
    be read, or nodes are out of order. ModuleNotFoundError: pygraphviz is not installed.
    """
    from pathlib import Path

    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.graph.show.draw import draw
    from mmdeploy_ext.sparse.show import draw_sparse

    cli.check_minimums(args, depth=0)
    if args.depth is not None and args.node is None:
        raise UsageError('--depth: goes with --node')
    check_writable(args.output)
    model, title = files.read_shapes(args.file), Path(args.file).name
    if files.is_sparse(model):
        if args.node is not None:
            raise UsageError(f'--node {args.node}: {args.file} is a sparse graph, which is drawn as a whole')
        draw_sparse(model, args.output, title)
        drawn = len(model.graph.node)
    else:
        files.check_order(model, args.file)
        title += f': around {args.node}' if args.node else ''
        depth = 3 if args.depth is None else args.depth
        drawn = draw(model, args.output, title=title, node=args.node, depth=depth)
    write_json(args, dict(file=args.file, picture=args.output, drawn=drawn, **_describe(model)))
    left_out = len(model.graph.node) - drawn
    note = f', {left_out} left out' if left_out else ''
    print(printable(f'{args.output}: {drawn} nodes drawn{note}'))
    return 0
