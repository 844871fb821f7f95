"""`graph.py extract, cut, insert-outputs, rename, set-shape, merge`: other inputs, outputs or shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps.graph_commands.command import Command, add_output, write_json
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError

if TYPE_CHECKING:
    import argparse

    import onnx

    from mmdeploy_ext.graph.proof import Proof


def _output_arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser, 'y.onnx', 'file to write; never the input')
    cli.add(parser, '--prove', 'run both on random inputs: unequal numbers are exit status 1')
    cli.add(parser, '--seed SEED', 'of the random inputs of --prove (default: 0)', 0)


def _load(args: argparse.Namespace) -> onnx.ModelProto:
    """Read the input, after a look at where the output goes."""
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
    """Prove what was asked to be proven, write the file and say what changed; `facts` go to --json."""
    from mmdeploy_ext.graph import proof

    found = proof.prove(before, after, seed=args.seed, renamed=renamed) if args.prove else None
    return _write(args, [args.file], [before], after, found, **facts)


def _write(
    args: argparse.Namespace,
    sources: list[str],
    before: list[onnx.ModelProto],
    after: onnx.ModelProto,
    found: Proof | None,
    **more: str,
) -> int:
    from mmdeploy_ext.graph.io import changes, files

    written = files.save(after, args.output, inputs=sources)
    content = changes.describe(before, after)
    facts: dict[str, Any] = dict(
        files=sources, output=args.output, written=[str(path) for path in written], **more
    )
    if found is not None:
        facts['proof'] = found.as_json()
    write_json(args, dict(**facts, **content))
    for line in changes.lines(content):
        print(line)
    if len(written) > 1:
        print(f'weights beside it: {", ".join(map(str, written[1:]))}')
    if found is not None:
        print(found.text)
    print(f'{args.output}: {content["nodes"][1]} nodes')
    return 0 if found is None or found.equal else 1


def _extract_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add(parser, '--nodes NODE...', "names, patterns ('/backbone/*') or positions ('#12')", [])
    cli.add(parser, '--tensors TENSOR...', 'names or patterns: the nodes that make them', [])
    _output_arguments(parser)


def run_extract(args: argparse.Namespace) -> int:
    """Write some nodes as a model of their own."""
    from mmdeploy_ext.graph.io.index import Index
    from mmdeploy_ext.graph.passes.extract import extract
    from mmdeploy_ext.graph.passes.select import matching, select

    if not args.nodes and not args.tensors:
        raise UsageError('extract: say which nodes, by --nodes or --tensors')
    model = _load(args)
    index = Index(model)
    chosen = set(select(index, args.nodes))
    for pattern in args.tensors:
        chosen.update(index.producer(name) for name in matching(index, pattern))
    return _finish(args, model, extract(model, chosen))


def _cut_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add(parser, '--inputs TENSOR...', 'tensors that become inputs (default: the inputs that are needed)')
    cli.add(parser, '--outputs TENSOR...', "tensors that become outputs (default: the graph's outputs)")
    _output_arguments(parser)


def run_cut(args: argparse.Namespace) -> int:
    """Write what lies between tensors."""
    from mmdeploy_ext.graph.passes.extract import cut

    if not args.inputs and not args.outputs:
        raise UsageError('cut: say where, by --inputs or --outputs')
    model = _load(args)
    return _finish(args, model, cut(model, args.inputs, args.outputs))


def _insert_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add(parser, 'tensors TENSOR...', "names or patterns ('/head/*') of inner tensors")
    _output_arguments(parser)


def run_insert_outputs(args: argparse.Namespace) -> int:
    """Write a file that also gives inner tensors."""
    from mmdeploy_ext.graph import edits
    from mmdeploy_ext.graph.passes.outputs import insert_outputs

    model = _load(args)
    after = insert_outputs(model, args.tensors)
    edits.record(after, 'insert-outputs', dict(tensors=args.tensors))
    return _finish(args, model, after)


def _rename_arguments(parser: argparse.ArgumentParser) -> None:
    for what in ('tensor', 'node'):
        parser.add_argument(
            f'--{what}',
            nargs=2,
            action='append',
            default=[],
            metavar=('OLD', 'NEW'),
            help=f'another name for a {what}; can be given again',
        )
    cli.add(parser, '--prefix P', 'before the names of all nodes and inner tensors, e.g. net/', '')
    cli.add(parser, '--name-nodes', 'name the nodes without a name, e.g. Conv_12')
    _output_arguments(parser)


def run_rename(args: argparse.Namespace) -> int:
    """Write the graph with other names."""
    from mmdeploy_ext.graph import edits
    from mmdeploy_ext.graph.passes.rename import rename

    if not (args.tensor or args.node or args.prefix or args.name_nodes):
        raise UsageError('rename: say what, by --tensor, --node, --prefix or --name-nodes')
    wanted = []
    for what, pairs in (('--tensor', args.tensor), ('--node', args.node)):
        if len({old for old, _ in pairs}) < len(pairs):
            raise UsageError(f'{what}: one name is given two new ones')
        wanted.append(dict(pairs))
    model = _load(args)
    after = rename(model, *wanted, prefix=args.prefix, fill=args.name_nodes)
    arguments = dict(tensors=wanted[0], nodes=wanted[1], prefix=args.prefix, fill=args.name_nodes)
    edits.record(after, 'rename', arguments)
    return _finish(args, model, after, renamed=wanted[0])


def _shape_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add(
        parser,
        'shapes NAME=SIZES...',
        'images=1x3x640x640 (fix), images=batch,3,h,w (open by name; ? without one), batch=1 (an axis)',
    )
    cli.add(parser, '--no-trial', 'do not run the result once at a size that the file did not have before')
    _output_arguments(parser)


def run_set_shape(args: argparse.Namespace) -> int:
    """Write the graph with other input shapes, after a trial that it runs at them."""
    from mmdeploy_ext.graph import batch_trial, edits, proof
    from mmdeploy_ext.graph.passes import shapes

    model = _load(args)
    after = shapes.set_by_text(model, args.shapes)
    edits.record(after, 'set-shape', dict(shapes=args.shapes))
    note = ''
    if not args.no_trial:
        tried = proof.try_sizes(model, after, seed=args.seed)
        note = batch_trial.check_batch(model, after, seed=args.seed)
        if tried:
            print(f'runs at {tried}')
        if note:
            print(f'note: {note}')
    return _finish(args, model, after, **({'note': note} if note else {}))


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    add = cli.adder(parser)
    add('files FILE...', 'ONNX files, in the order of execution')
    add(
        '--connect OUT IN',
        'an output of an earlier file feeds this input of a later one; equal names need none',
        action='append',
        default=[],
    )
    add('--names NAME...', "one per file, before its names (default: the files' names)")
    add('--outputs TENSOR...', 'outputs to keep (default: those that no later file takes)')
    _output_arguments(parser)


def run_merge(args: argparse.Namespace) -> int:
    """Write several files as one."""
    from mmdeploy_ext.graph import proof
    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.graph.passes.merge import merge

    if len(args.files) < 2:
        raise UsageError(f'merge: expected at least two files, got {args.files[0]}')
    names = args.names or [Path(file).stem for file in args.files]
    if len(names) != len(args.files):
        raise UsageError(f'--names: got {len(names)} names for {len(args.files)} files')
    files.check_targets([args.output], args.files)
    models = [files.load(file) for file in args.files]
    connections = dict(args.connect)
    after = merge(models, names, connections=connections, outputs=args.outputs)
    found = proof.prove_chain(models, after, connections, seed=args.seed) if args.prove else None
    return _write(args, args.files, models, after, found)


COMMANDS = {
    'extract': Command('Write some nodes as a model of their own', run_extract, _extract_arguments),
    'cut': Command('Write what lies between tensors', run_cut, _cut_arguments),
    'insert-outputs': Command('Make inner tensors outputs', run_insert_outputs, _insert_arguments),
    'rename': Command('Give tensors and nodes other names', run_rename, _rename_arguments),
    'set-shape': Command('Fix or open the shapes of inputs', run_set_shape, _shape_arguments),
    'merge': Command(
        'Write several files as one: outputs feed inputs', run_merge, _merge_arguments, takes_file=False
    ),
}
