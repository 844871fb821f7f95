"""`exporters.py`: the table of docs/exporters.md, measured."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from docs._pages.exporters import page as exporters_page
from docs._pages.exporters import rows as exporters
from docs._pages.exporters.rows import EXPORTERS, MODELS
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import after_weights
from mmdeploy_ext.core.files import write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from docs._pages.exporters.rows import Row


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Export the small model of every family with both exporters, prove every file, count its '
        'nodes and run the files in turns. Exit status 1 when one does not export or is not proven.'
    )
    parser.add_argument(
        '--models', nargs='+', choices=MODELS, default=list(MODELS), help='default: all', metavar='MODEL'
    )
    parser.add_argument('--forms', nargs='+', default=[], metavar='FORM', help='default: all of a model')
    parser.add_argument('--opsets', nargs='+', type=int, default=[18, 20], metavar='N', help='default: 18 20')
    parser.add_argument('--exporters', nargs='+', choices=EXPORTERS, default=list(EXPORTERS), metavar='E')
    parser.add_argument(
        '--rounds', type=int, default=10, metavar='N', help='timed runs of each file (default: 10)'
    )
    cli.writes(
        parser.add_argument(
            '--write',
            metavar='FILE.md',
            help='put the rows into the table of this page; rows of others stay',
        )
    )
    parser.add_argument('--json', metavar='FILE', help='write all figures as JSON')
    cli.add_debug_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, print, write."""
    cli.wait_passively()
    from mmdeploy_ext import compat

    compat.apply()
    from mmdeploy_ext.exporting.export import check_opset

    cli.check_minimums(args, rounds=1)
    for exporter in args.exporters:
        for opset in args.opsets:
            check_opset(opset, exporter, f'--opsets {opset}')
    if args.write:
        exporters_page.read(args.write)  # refuses before minutes of measuring what cannot be written back
    forms = exporters.chosen_forms(args.models, args.forms)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, forms, Path(folder))
    if args.json:
        write_json(args.json, [dataclasses.asdict(row) for row in rows])
    try:
        if args.write:
            with after_weights():
                exporters_page.read(args.write).write(rows)
    finally:
        print('\n'.join(exporters_page.table(rows)))
    return 0 if all(row.proven for row in rows) else 1


def measure(args: argparse.Namespace, forms: dict[str, tuple[str, ...]], folder: Path) -> list[Row]:
    """Measure all models; a progress bar counts exports."""
    from rich.progress import Progress

    from mmdeploy_ext.preprocess import DEFAULT_PICTURE

    root, console, rows = Path(__file__).resolve().parents[3], cli.stderr(), []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task('measuring', total=sum(map(len, forms.values())) * len(args.opsets))
        for name, model_forms in forms.items():
            model = MODELS[name]
            export = exporters.Export(model, root, DEFAULT_PICTURE)
            for form in model_forms:
                for opset in args.opsets:
                    rows += exporters.measure(
                        export, model.title, form, opset, args.exporters, folder, args.rounds
                    )
                    bar.advance(task)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool.

    Args:
        argv: command line; None reads sys.argv.

    Returns:
        0 all proven, 1 not, 2 usage.
    """
    return cli.run(run, build_parser(), argv)
