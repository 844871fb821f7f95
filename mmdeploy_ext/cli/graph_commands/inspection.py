"""`graph.py show`: the content of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.base.errors import UsageError, printable
from mmdeploy_ext.cli.graph_commands.command import Commands, argument, write_json

if TYPE_CHECKING:
    import argparse

COMMANDS = Commands()


@COMMANDS.add(
    'show',
    'Print the contents of a file; sparse graphs node by node',
    argument(
        '--nodes PATTERN',
        "also list all nodes, or nodes with a matching name, operator or output, e.g. Conv or '/head/*'",
        nargs='?',
        const='*',
    ),
)
def run_show(args: argparse.Namespace) -> int:
    from mmdeploy_ext.exporting.sparse.show import sparse_layers, trace_lines
    from mmdeploy_ext.graphs import summary
    from mmdeploy_ext.graphs.io import files

    model = files.read(args.file)
    content = summary.describe(model)
    lines = [*summary.lines(content)]
    if content['kind'] == 'sparse':
        content['layers'] = sparse_layers(model)
        lines += ['', *trace_lines(content['layers'])]
    if args.nodes:
        content['node_list'] = summary.node_rows(model, args.nodes)
        if not content['node_list']:
            raise UsageError(f'--nodes {args.nodes}: matches no node of {args.file}')
        lines += ['', *summary.node_lines(content['node_list'])]
    write_json(args, dict(file=args.file, **content))
    for line in lines:
        print(printable(line))
    return 0
