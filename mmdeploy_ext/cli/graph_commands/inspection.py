"""`graph.py show`: the content of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.cli.graph_commands.command import Commands, argument, write_json
from mmdeploy_ext.core.errors import UsageError, printable

if TYPE_CHECKING:
    import argparse

    import onnx


COMMANDS = Commands()


def _read(args: argparse.Namespace) -> onnx.ModelProto:
    """Read a file, even a broken one."""
    from mmdeploy_ext.graph.io import files

    return files.read_shapes(args.file)


@COMMANDS.add(
    'show',
    'Print what is in a file: sparse graphs node by node',
    argument(
        '--nodes PATTERN',
        "also list the nodes, or those whose name, operator or output fits, e.g. Conv or '/head/*'",
        nargs='?',
        const='*',
    ),
)
def run_show(args: argparse.Namespace) -> int:
    """Print the content of a file, and with --nodes its nodes, and return 0.

    `args` are the parsed arguments of this command. UsageError: no node fits --nodes.
    ModelFileError: the file cannot be read.
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
