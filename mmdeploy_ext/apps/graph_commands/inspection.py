"""`graph.py show` and `draw`: what is in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.apps.graph_commands.command import Command, write_json

if TYPE_CHECKING:
    import argparse


def run_show(args: argparse.Namespace) -> int:
    """Print what is in a file."""
    from mmdeploy_ext.graph import show
    from mmdeploy_ext.sparse.contract import load_model

    content = show.describe(load_model(args.file))
    for line in show.lines(content):
        print(line)
    write_json(args, dict(file=args.file, **content))
    return 0


def _draw_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--output', required=True, metavar='x.svg', help='picture to write: .svg, .png or .pdf'
    )


def run_draw(args: argparse.Namespace) -> int:
    """Draw a sparse graph."""
    from pathlib import Path

    from mmdeploy_ext.files import check_writable
    from mmdeploy_ext.graph.draw import draw_sparse
    from mmdeploy_ext.graph.show import describe
    from mmdeploy_ext.sparse.contract import load_model

    check_writable(args.output)
    model = load_model(args.file)
    draw_sparse(model, args.output, Path(args.file).name)
    print(f'{args.output}: {len(model.graph.node)} nodes drawn')
    write_json(args, dict(file=args.file, picture=args.output, **describe(model)))
    return 0


COMMANDS = {
    'show': Command('Print what is in a file: node by node when it is sparse', run_show),
    'draw': Command('Draw a sparse graph (libspconv dialect)', run_draw, _draw_arguments),
}
