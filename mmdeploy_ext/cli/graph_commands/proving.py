"""Shared by commands that rewrite a graph: inputs to run it on, the comparison, the output file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import InferenceError, ModelFileError, UsageError, escape
from mmdeploy_ext.cli.graph_commands.command import AddArgument, argument, output, write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import numpy as np
    import onnx
    from rich.console import Console

    from mmdeploy_ext.spec.results import TensorRow

SEEDS = 2
"""Sets of random inputs of a comparison."""
JSON_FIELDS = ('tensor', 'shape', 'max_abs', 'max_rel', 'cosine', 'passed', 'reason')
"""Fields of a row in --json."""
HINT = 'raise --tolerance, pass other --inputs, or write the file with --no-proof'
FEEDS = (
    argument('--inputs FILE', 'inputs to run on: .npz, or a folder of .npy (default: random values)'),
    argument('--seed N', 'seed of random inputs (default: 0)', 0),
    argument(
        '--size AXIS=N',
        'size of a symbolic axis for random inputs, repeatable (default: 1 for the first axis of an '
        'input, else 64)',
        [],
        action='append',
    ),
)


def proof(tolerance: float) -> tuple[AddArgument, ...]:
    """--out and the arguments of the comparison with the input file."""
    return (
        output('OUT.onnx', 'file to write; the input file is never changed'),
        *FEEDS,
        argument(
            '--tolerance T',
            'largest difference of an output, relative to its largest value (default: %(default)g)',
            tolerance,
        ),
        argument('--no-proof', 'write the file without running it'),
    )


def check_tolerance(tolerance: float) -> None:
    if not 0 <= tolerance < 1:
        raise UsageError(f'--tolerance {tolerance:g}: expected a number from 0 to below 1, e.g. 1e-4')


def parse_sizes(texts: Sequence[str]) -> dict[str, int]:
    """axis -> size of texts `AXIS=N`."""
    sizes = {}
    for text in texts:
        name, _, number = text.rpartition('=')
        if not name or not number.isdecimal() or int(number) < 1:
            raise UsageError(f'--size {text!r}: expected AXIS=N with a positive number, e.g. N=2')
        sizes[name] = int(number)
    return sizes


def read_feeds(
    args: argparse.Namespace, model: onnx.ModelProto, count: int = SEEDS
) -> list[dict[str, np.ndarray]]:
    """Inputs of --inputs, or `count` random sets."""
    from mmdeploy_ext.graphs.io.files import load_tensors
    from mmdeploy_ext.graphs.run import random_feeds

    sizes = parse_sizes(args.size)
    if args.inputs and (sizes or args.seed):
        raise UsageError('--size and --seed are for random inputs, and --inputs replaces these; omit one')
    if args.inputs:
        return [load_tensors(args.inputs)]
    return [random_feeds(model, args.seed + step, sizes) for step in range(count)]


def finish(
    args: argparse.Namespace,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    content: dict[str, Any],
    *,
    any_float: bool = False,
    hint: str = HINT,
) -> int:
    """Compare the result with the model of `args.file`, write it if they agree, and print the comparison.

    Args:
        args: parsed arguments, see `proof`.
        before: the model of `args.file`.
        after: the result.
        content: facts of the command for --json.
        any_float: floats of the result may have another width.
        hint: printed if the numbers differ.

    Returns:
        0: written. 1: the numbers of an output differ, nothing was written.
    """
    from mmdeploy_ext.graphs.io import files
    from mmdeploy_ext.graphs.output_comparison import compare_models
    from mmdeploy_ext.spec.comparison import equality_claim, is_equal, is_exact

    console, rows, feeds = cli.stdout(), [], []
    if not args.no_proof:
        feeds = read_feeds(args, before)
        try:
            rows = compare_models(before, after, feeds, args.tolerance, any_float=any_float)
        except ModelFileError as error:
            raise ModelFileError(
                f'{args.file}: {error}; --no-proof writes the file without running it'
            ) from error
        except InferenceError as error:
            if args.inputs:
                raise
            raise InferenceError(
                f'{args.file}: {error}; the inputs were random: pass inputs of a real run with --inputs'
            ) from error
    equal = args.no_proof or is_equal(rows)
    content = dict(file=args.file, output=args.out if equal else None, **content)
    content['proof'] = None if args.no_proof else rows_json(rows, args.tolerance)
    if equal:
        files.save(after, args.out, inputs=[args.file])
    write_json(args, content)
    if args.no_proof:
        cli.say(
            console,
            f'{args.out}: written without a comparison; outputs may differ',
            'NOT COMPARED',
            'yellow',
        )
        return 0
    print_rows(rows, console)
    claim = equality_claim(rows, len(feeds))
    if not equal:
        reasons = dict.fromkeys(f'{row.tensor}: {row.reason}' for row in rows if not row.passed)
        failed = '; '.join(reasons) or 'the graph has no outputs, nothing was compared'
        cli.say(console, f'{args.out} was not written: {failed}; {hint}', claim, 'bold red')
        return 1
    worst = max(row.max_rel or 0 for row in rows)
    text = f'largest difference {worst:.2g} of the largest value, allowed {args.tolerance:g}'
    if is_exact(rows):
        text = 'all output values are equal'
    cli.say(console, f'{args.out}: {text}', claim, 'bold green')
    return 0


def rows_json(rows: Sequence[TensorRow], tolerance: float) -> dict[str, Any]:
    from mmdeploy_ext.spec.comparison import is_equal, is_exact

    outputs = [{name: getattr(row, name) for name in JSON_FIELDS} for row in rows]
    return dict(equal=is_equal(rows), exact=is_exact(rows), tolerance=tolerance, outputs=outputs)


def load(path: str) -> onnx.ModelProto:
    """Read an ONNX file that ONNX Runtime can run, with its weights."""
    from mmdeploy_ext.graphs.io import files

    model = files.load(path)
    files.check_ordinary(model)
    return model


def begin(args: argparse.Namespace) -> onnx.ModelProto:
    """The model of `args.file`, after checks of --tolerance and --out."""
    from mmdeploy_ext.graphs.io import files

    check_tolerance(args.tolerance)
    files.check_targets([args.out], [args.file])
    return load(args.file)


def print_rows(rows: Sequence[TensorRow], console: Console) -> None:
    """Print the worst row of each output over all inputs."""
    from rich import box
    from rich.table import Table

    from mmdeploy_ext.proving.views.table import cosine_text, figure

    worst: dict[str, TensorRow] = {}
    for row in sorted(rows, key=lambda row: (row.passed, -(row.max_rel or 0))):
        worst.setdefault(row.tensor, row)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column('output', overflow='fold', max_width=44)
    for title in ('shape', 'max abs', 'max rel', 'cosine'):
        table.add_column(title, justify='right')
    table.add_column('')
    for row in (worst[name] for name in dict.fromkeys(row.tensor for row in rows)):
        mark = '[green]equal[/green]' if row.passed else '[red]differs[/red]'
        figures = (figure(row.max_abs), figure(row.max_rel), cosine_text(row.cosine))
        table.add_row(escape(row.tensor), row.shape, *figures, mark)
    console.print(table)
