"""`python -m mmdeploy_ext.cli.dump_app`: list, show and compare dumps; needs numpy and rich only."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.dump import MANIFEST, list_samples, load_dump, load_manifest
from mmdeploy_ext.core.errors import DataError, UsageError, escape, shape_text
from mmdeploy_ext.core.files import write_json

RTOL = 1e-4
"""Tolerance of tensors of floats but those of float64, as a share of the largest absolute value of the first
dump's tensor."""
FLOAT64_ATOL = 1e-6
"""Tolerance of float64 tensors, in their unit: times of 1e9 s, of which a share would be hours; and poses,
matrices and scores."""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        prog='python -m mmdeploy_ext.cli.dump_app', description='List, show and compare dumped tensors.'
    )
    commands = parser.add_subparsers(dest='command', required=True)
    listing = commands.add_parser('list', help='the samples of a dump')
    cli.add(listing, 'folder')
    show = commands.add_parser('show', help='the tensors of each sample')
    cli.add(show, 'folder')
    compare = commands.add_parser(
        'compare', help='two dumps, tensor by tensor; exit status 1 when they differ'
    )
    add = cli.adder(compare)
    add('first')
    add('second')
    add(
        '--rtol RTOL',
        f"of the largest value of the first's tensor (default: {RTOL}); float64 tensors, such as times in "
        f'seconds, have --atol or {FLOAT64_ATOL} instead',
        RTOL,
        type=float,
    )
    add('--atol ATOL', 'absolute; the larger of both counts', 0.0)
    add('--tensors NAME...', 'only these')
    add('--json FILE', 'write the rows as JSON')
    cli.add_debug_option(parser)
    return parser


def samples_of(folder: str) -> dict[str, Path]:
    """Sample name -> folder of the dump in `folder`; a folder of one sample is a dump of that sample."""
    root = Path(folder)
    if (root / MANIFEST).is_file():
        return {root.name: root}
    samples = {path.name: path for path in list_samples(root)}
    if not samples:
        raise DataError(f'{folder}: no dump here (no {MANIFEST} in it or in its folders)')
    return samples


def _list(args: argparse.Namespace) -> int:
    from rich.table import Table

    table = Table('sample', 'tensors', 'MB', 'config', 'frame')
    for name, path in samples_of(args.folder).items():
        manifest = load_manifest(path)
        size = sum((path / entry['file']).stat().st_size for entry in manifest['tensors'].values())
        table.add_row(
            escape(name),
            str(len(manifest['tensors'])),
            f'{size / 1e6:.2f}',
            escape(manifest.get('config', '')),
            escape(manifest.get('frame', '')),
        )
    cli.stdout().print(table)
    return 0


def _show(args: argparse.Namespace) -> int:
    from rich.table import Table

    for name, path in samples_of(args.folder).items():
        tensors, manifest = load_dump(path)
        table = Table('tensor', 'dtype', 'shape', 'min', 'max', 'mean', title=escape(name))
        for key, array in tensors.items():
            shape = shape_text(array.shape)
            values = (array.min(), array.max(), array.mean()) if array.size else ()
            table.add_row(
                escape(key),
                escape(manifest['tensors'][key]['dtype']),
                shape,
                *(f'{value:.{15 if array.dtype == np.float64 else 6}g}' for value in values),
            )
        cli.stdout().print(table)
    return 0


def _pairs(args: argparse.Namespace) -> list[tuple[str, Path, Path]]:
    first, second = samples_of(args.first), samples_of(args.second)
    if len(first) == len(second) == 1:
        ((name, first_folder),) = first.items()
        (second_folder,) = second.values()
        return [(name, first_folder, second_folder)]
    if first.keys() != second.keys():
        raise DataError(
            f'{args.first} and {args.second} hold other samples: {sorted(first.keys() ^ second.keys())}'
        )
    return [(name, first[name], second[name]) for name in first]


def _compare(args: argparse.Namespace) -> int:
    from rich.table import Table

    from mmdeploy_ext.contract.comparison import compare_tensors
    from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec, TensorSpec
    from mmdeploy_ext.graph.output_comparison import without_equal_gaps

    for name in ('rtol', 'atol'):
        if not 0 <= getattr(args, name) < float('inf'):
            raise UsageError(f'--{name} {getattr(args, name)}: expected 0 or more')
    group = ColumnGroup(rtol=args.rtol, atol=args.atol)
    doubles = ColumnGroup(rtol=0.0, atol=args.atol or FLOAT64_ATOL)
    rows = []
    for name, first, second in _pairs(args):
        reference, candidate = load_dump(first)[0], load_dump(second)[0]
        if missing := set(args.tensors or ()) - reference.keys():
            raise DataError(f'{first}: has no {sorted(missing)}; there are {sorted(reference)}')
        reference, candidate = (
            {key: array for key, array in side.items() if key in (args.tensors or side)}
            for side in (reference, candidate)
        )
        for key in reference.keys() & candidate.keys():  # Sparse4D leaves scores of kept instances out by NaN
            reference[key], candidate[key] = without_equal_gaps(reference[key], candidate[key])
        outputs = tuple(
            TensorSpec(
                key, str(array.dtype), array.shape, groups=(doubles if array.dtype == float else group,)
            )
            for key, array in reference.items()
        )
        rows += [(name, row) for row in compare_tensors(reference, candidate, GraphSpec(name, (), outputs))]
    if args.json:
        fields = ('tensor', 'max_abs', 'passed', 'reason')
        write_json(
            args.json, [dict(sample=name, **{key: getattr(row, key) for key in fields}) for name, row in rows]
        )
    table = Table('sample', 'tensor', 'shape', 'largest difference', 'allowed', 'verdict')
    for name, row in rows:
        figures = ['' if value is None else f'{value:.3g}' for value in (row.max_abs, row.tolerance)]
        table.add_row(
            escape(name),
            escape(row.tensor),
            row.shape,
            *figures,
            'equal' if row.passed else escape(row.reason or 'DIFFERS'),
        )
    cli.stdout().print(table)
    return 0 if rows and all(row.passed for _, row in rows) else 1


def run(args: argparse.Namespace) -> int:
    return dict(list=_list, show=_show, compare=_compare)[args.command](args)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(run, build_parser(), argv)


if __name__ == '__main__':
    sys.exit(main())
