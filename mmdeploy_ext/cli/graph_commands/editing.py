"""`graph.py extract, cut, insert-outputs, rename, set-shape, merge`: other inputs, outputs or shapes."""

from __future__ import annotations

from pathlib import Path
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


def _finish(
    args: argparse.Namespace,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    renamed: dict[str, str] | None = None,
    **facts: str,
) -> int:
    """Compare both graphs with --prove, write the file and print changes.

    `renamed` is old -> new name of the tensors that have another one; `facts` go to --json.
    """
    from mmdeploy_ext.graph.output_comparison import compare_edited

    rows = compare_edited(before, after, seed=args.seed, renamed=renamed) if args.prove else None
    return _write(args, [args.file], [before], after, rows, **facts)


def _write(
    args: argparse.Namespace,
    sources: list[str],
    before: list[onnx.ModelProto],
    after: onnx.ModelProto,
    rows: Sequence[TensorRow] | None,
    **facts: str,
) -> int:
    """Write the file and print the changes; `rows` is None without a comparison of the outputs."""
    from mmdeploy_ext.contract.comparison import is_equal
    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.graph.output_comparison import ROUNDING
    from mmdeploy_ext.graph.show.summary import describe_edit, edit_lines

    paths = files.save(after, args.output, inputs=sources)
    content = describe_edit(before, after)
    report: dict[str, Any] = dict(
        files=sources, output=args.output, written=[str(path) for path in paths], **facts
    )
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
    'cut',
    'Write what lies between tensors',
    argument('--inputs TENSOR...', 'tensors that become inputs (default: the inputs that are needed)'),
    argument('--outputs TENSOR...', "tensors that become outputs (default: the graph's outputs)"),
    *OUTPUT,
)
def run_cut(args: argparse.Namespace) -> int:
    """Write the part of a graph between the tensors of --inputs and those of --outputs.

    `args` are the parsed arguments of this command. Return 0, or 1 if --prove finds that outputs differ; the
    file is written either way. UsageError: neither option is given, the tensors do not bound a part, or the
    output cannot be written.
    """
    from mmdeploy_ext.graph.passes.extract import cut

    if not args.inputs and not args.outputs:
        raise UsageError('cut: say where, by --inputs or --outputs')
    model = _load(args)
    return _finish(args, model, cut(model, args.inputs, args.outputs))


@COMMANDS.add(
    'insert-outputs',
    'Make inner tensors outputs',
    argument('tensors TENSOR...', "names or patterns ('/head/*') of inner tensors"),
    *OUTPUT,
)
def run_insert_outputs(args: argparse.Namespace) -> int:
    """Write a file whose outputs are also the inner tensors that `tensors` names.

    `args` are the parsed arguments of this command. Return 0, or 1 if --prove finds that outputs differ; the
    file is written either way; outputs that are there already stay. UsageError: a name fits no tensor that
    a node makes, or the output cannot be written.
    """
    from mmdeploy_ext.graph.passes.extract import insert_outputs

    model = _load(args)
    return _finish(args, model, insert_outputs(model, args.tensors))


@COMMANDS.add(
    'rename',
    'Give tensors and nodes other names',
    argument('--tensor OLD NEW', 'another name for a tensor; can be given again', [], action='append'),
    argument('--node OLD NEW', 'another name for a node; can be given again', [], action='append'),
    argument('--prefix P', 'before the names of all nodes and inner tensors, e.g. net/', ''),
    argument('--name-nodes', 'name the nodes without a name, e.g. Conv_12'),
    *OUTPUT,
)
def run_rename(args: argparse.Namespace) -> int:
    """Write the graph with other names of tensors and nodes.

    `args` are the parsed arguments of this command. Return 0, or 1 if --prove finds that outputs differ; the
    file is written either way. UsageError: no option is given, one name is given two new ones, an old name
    is unknown or a new one taken, or the output cannot be written.
    """
    from mmdeploy_ext.graph import edits
    from mmdeploy_ext.graph.passes.rename import rename

    if not (args.tensor or args.node or args.prefix or args.name_nodes):
        raise UsageError('rename: say what, by --tensor, --node, --prefix or --name-nodes')
    for option, pairs in (('--tensor', args.tensor), ('--node', args.node)):
        if len({old for old, _ in pairs}) < len(pairs):
            raise UsageError(f'{option}: one name is given two new ones')
    tensors, nodes = dict(args.tensor), dict(args.node)
    model = _load(args)
    after = rename(model, tensors, nodes, prefix=args.prefix, fill=args.name_nodes)
    edits.record(after, 'rename')
    return _finish(args, model, after, renamed=tensors)


@COMMANDS.add(
    'set-shape',
    'Fix or open the shapes of inputs',
    argument(
        'shapes NAME=SIZES...',
        'images=1x3x640x640 (fix), images=batch,3,h,w (open by name; ? without one), batch=1 (an axis)',
    ),
    argument('--no-trial', 'do not run the result once at a size that the file did not have before'),
    *OUTPUT,
)
def run_set_shape(args: argparse.Namespace) -> int:
    """Write the graph with other input shapes, after a run at sizes that it did not take before.

    There is no such run with --no-trial, or if there are no such sizes. `args` are the parsed arguments of
    this command. Return 0, or 1 if --prove finds that outputs differ; the file is written either way.
    UsageError: a shape cannot be read or does not fit the graph, or the output cannot be written.
    InferenceError: the run fails, or mixes the images of a batch; no file is written.
    """
    from mmdeploy_ext.graph import batch_trial, edits
    from mmdeploy_ext.graph.passes import shapes

    model = _load(args)
    after = shapes.with_fixed_metadata(shapes.set_by_text(model, args.shapes))
    edits.record(after, 'set-shape')
    facts = {}
    if not args.no_trial:
        sizes = batch_trial.try_sizes(model, after, seed=args.seed)
        note = batch_trial.check_batch(model, after, seed=args.seed)
        if sizes:
            print(f'runs at {sizes}')
        if note:
            print(f'note: {note}')
            facts['note'] = note
    return _finish(args, model, after, **facts)


@COMMANDS.add(
    'merge',
    'Write several files as one: outputs feed inputs',
    argument('files FILE...', 'ONNX files, in the order of execution'),
    argument(
        '--connect OUT IN',
        'an output of an earlier file feeds this input of a later one; equal names need none',
        action='append',
        default=[],
    ),
    argument('--names NAME...', "one per file, before its names (default: the files' names)"),
    argument('--outputs TENSOR...', 'outputs to keep (default: those that no later file takes)'),
    *OUTPUT,
    takes_file=False,
)
def run_merge(args: argparse.Namespace) -> int:
    """Write several files as one, in which outputs of earlier files feed inputs of later ones.

    `args` are the parsed arguments of this command. Return 0, or 1 if --prove finds that outputs differ; the
    file is written either way. UsageError: fewer than two files, another number of names, one output
    connected twice, names or tensors that do not go together, or the output cannot be written.
    """
    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.graph.output_comparison import compare_merged
    from mmdeploy_ext.graph.passes.merge import merge

    if len(args.files) < 2:
        raise UsageError(f'merge: expected at least two files, got {args.files[0]}')
    names = args.names or [Path(file).stem for file in args.files]
    if len(names) != len(args.files):
        raise UsageError(f'--names: got {len(names)} names for {len(args.files)} files')
    connections = dict(args.connect)
    if len(connections) < len(args.connect):
        raise UsageError('--connect: one output is given two inputs; give these one name by rename first')
    files.check_targets([args.output], args.files)
    models = [files.load(file) for file in args.files]
    after = merge(models, names, connections=connections, outputs=args.outputs)
    rows = compare_merged(models, after, connections, seed=args.seed) if args.prove else None
    return _write(args, args.files, models, after, rows)
