"""`graph.py extract, set-shape`: a part of a graph, or other shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.cli.graph_commands.command import Commands, argument, output, write_json
from mmdeploy_ext.cli.graph_commands.proving import rows_json
from mmdeploy_ext.core.errors import UsageError, printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import onnx

    from mmdeploy_ext.contract.comparison import TensorRow


COMMANDS = Commands()
OUTPUT = (
    output('y.onnx', 'file to write; never the input'),
    argument('--prove', 'run both on random inputs: unequal numbers are exit status 1'),
    argument('--seed SEED', 'of the random inputs of --prove (default: 0)', 0),
)
"""Arguments of every subcommand here: the output, and the comparison with the input."""


def _load(args: argparse.Namespace) -> onnx.ModelProto:
    """Read the input, unless the output cannot be written."""
    from mmdeploy_ext.graph.io import files

    files.check_targets([args.output], [args.file])
    return files.load(args.file)


def _finish(args: argparse.Namespace, before: onnx.ModelProto, after: onnx.ModelProto) -> int:
    """Compare both graphs with --prove, write the file and print changes."""
    from mmdeploy_ext.contract.comparison import is_equal
    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.graph.output_comparison import ROUNDING, compare_edited
    from mmdeploy_ext.graph.show.summary import describe_edit, edit_lines

    rows = compare_edited(before, after, seed=args.seed) if args.prove else None
    paths = files.save(after, args.output, inputs=[args.file])
    content = describe_edit(before, after)
    report: dict[str, Any] = dict(file=args.file, output=args.output, written=[str(path) for path in paths])
    if rows is not None:
        report['proof'] = rows_json(rows, ROUNDING)
    write_json(args, dict(**report, **content))
    for line in edit_lines(content):
        print(printable(line))
    if len(paths) > 1:
        print(f'weights beside it: {", ".join(map(str, paths[1:]))}')
    if rows is not None:
        print(printable(_comparison_text(rows)))
    print(printable(f'{args.output}: {content["nodes"][1]} nodes'))
    return 0 if rows is None or is_equal(rows) else 1


def _comparison_text(rows: Sequence[TensorRow]) -> str:
    """Return a line about the outputs, which were compared on one set of random inputs."""
    from mmdeploy_ext.contract.comparison import equality_claim, is_equal, is_exact

    claim, count = equality_claim(rows, 1), len(rows)
    if is_exact(rows):
        return f'{claim}: {count} outputs equal bit for bit on random numbers'
    if is_equal(rows):
        worst = max(row.max_rel or 0.0 for row in rows)
        return f'{claim}: {count} outputs equal on random numbers, to {worst:.1e} of their largest'
    failed = [f'{row.tensor}: {row.reason}' for row in rows if not row.passed]
    return f'{claim}: {len(failed)} of {count} outputs differ: {"; ".join(failed[:5])}'


@COMMANDS.add(
    'extract',
    'Write some nodes as a model of their own',
    argument('--nodes NODE...', "names, patterns ('/backbone/*') or positions ('#12')", []),
    argument('--tensors TENSOR...', 'names or patterns: the nodes that make them', []),
    *OUTPUT,
)
def run_extract(args: argparse.Namespace) -> int:
    """Write the nodes of --nodes, and those that make the tensors of --tensors, as a model of their own.

    `args` are the parsed arguments of this command. Return 0, or 1 if --prove, which feeds the part with the
    values that its inputs have in the whole graph, finds that outputs differ; the file is written either way.
    UsageError: neither option is given, a name fits nothing, the nodes depend on constants alone, or the
    output cannot be written.
    """
    from mmdeploy_ext.graph.io.index import Index
    from mmdeploy_ext.graph.passes.extract import extract
    from mmdeploy_ext.graph.passes.select import match_tensors, select_nodes

    if not args.nodes and not args.tensors:
        raise UsageError('extract: say which nodes, by --nodes or --tensors')
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
    *OUTPUT,
)
def run_set_shape(args: argparse.Namespace) -> int:
    """Write the graph with other input shapes.

    `args` are the parsed arguments of this command. Return 0, or 1 if --prove finds that outputs differ; the
    file is written either way. UsageError: a shape cannot be read or does not fit the graph, or the output
    cannot be written.
    """
    from mmdeploy_ext.graph import edits
    from mmdeploy_ext.graph.passes import shapes

    model = _load(args)
    after = shapes.with_fixed_metadata(shapes.set_by_text(model, args.shapes))
    edits.record(after, 'set-shape')
    return _finish(args, model, after)
