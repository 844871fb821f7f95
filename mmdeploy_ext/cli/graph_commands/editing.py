"""`graph.py extract, set-shape`: a part of a graph, or other shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.base.errors import UsageError, printable
from mmdeploy_ext.cli.graph_commands.command import Commands, argument, output, write_json

if TYPE_CHECKING:
    import argparse

    import onnx


COMMANDS = Commands()
OUTPUT = output('y.onnx', 'file to write, not the input')


def _load(args: argparse.Namespace) -> onnx.ModelProto:
    from mmdeploy_ext.graphs.io import files

    files.check_targets([args.out], [args.file])
    return files.load(args.file)


def _finish(args: argparse.Namespace, before: onnx.ModelProto, after: onnx.ModelProto) -> int:
    from mmdeploy_ext.graphs import summary
    from mmdeploy_ext.graphs.io import files

    paths = files.save(after, args.out, inputs=[args.file])
    nodes = [len(before.graph.node), len(after.graph.node)]
    content = summary.describe(after)
    written = [str(path) for path in paths]
    write_json(args, dict(file=args.file, output=args.out, written=written, nodes=nodes))
    print(printable(f'{" and ".join(written)}: {nodes[1]} of {nodes[0]} nodes'))
    for line in list(summary.lines(content))[:2]:
        print(printable(line))
    return 0


@COMMANDS.add(
    'extract',
    'Write some nodes as a separate model',
    argument('--nodes NODE...', "names, patterns ('/backbone/*') or positions ('#12')", []),
    argument('--tensors TENSOR...', 'also the nodes that compute these tensors, by names or patterns', []),
    OUTPUT,
)
def run_extract(args: argparse.Namespace) -> int:
    from mmdeploy_ext.graphs.io.index import Index
    from mmdeploy_ext.graphs.passes.extract import extract
    from mmdeploy_ext.graphs.passes.select import match_tensors, select_nodes

    if not args.nodes and not args.tensors:
        raise UsageError('extract: select nodes with --nodes or --tensors')
    model = _load(args)
    index = Index(model)
    nodes = set(select_nodes(index, args.nodes))
    for pattern in args.tensors:
        nodes.update(index.producer(name) for name in match_tensors(index, pattern))
    return _finish(args, model, extract(model, nodes))


@COMMANDS.add(
    'set-shape',
    'Fix or open the shapes of inputs',
    argument(
        'shapes NAME=SIZES...',
        'images=1x3x640x640 (fix), images=batch,3,h,w (open by name; ? without one), batch=1 (an axis)',
    ),
    OUTPUT,
)
def run_set_shape(args: argparse.Namespace) -> int:
    from mmdeploy_ext.graphs import edits
    from mmdeploy_ext.graphs.passes import shapes

    model = _load(args)
    after = shapes.with_fixed_metadata(shapes.set_by_text(model, args.shapes))
    edits.record(after, 'set-shape')
    return _finish(args, model, after)
