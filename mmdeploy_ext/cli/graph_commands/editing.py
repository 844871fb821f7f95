"""`graph.py show, extract, set-shape, replace, simplify, fp16, write-tables`: one file, shown or changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import UsageError, printable
from mmdeploy_ext.base.files import check_writable
from mmdeploy_ext.cli.check_app import find_contract
from mmdeploy_ext.cli.graph_commands import proving
from mmdeploy_ext.cli.graph_commands.command import Commands, argument, output, write_json
from mmdeploy_ext.spec.registry import rig_tables

if TYPE_CHECKING:
    import argparse

    import onnx

COMMANDS = Commands()
OUTPUT = output('y.onnx', 'file to write, not the input')
TOLERANCE = 1e-4
FP16_TOLERANCE = 1e-2
"""Defaults of --tolerance: largest difference of an output relative to its largest value."""


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


@COMMANDS.add(
    'replace',
    'Replace patterns of nodes with other nodes',
    argument(
        '--rule FILE.py',
        'file with the functions `pattern(op, x, ...)`, `replacement(op, x, ...)` and optionally '
        '`check(context, x, ...)`, as in onnxscript; repeatable',
        required=True,
        action='append',
    ),
    *proving.proof(TOLERANCE),
)
def run_replace(args: argparse.Namespace) -> int:
    from mmdeploy_ext.base.taps import load_module
    from mmdeploy_ext.graphs import edits
    from mmdeploy_ext.graphs.passes.replace import replace

    rules = [load_module(file, ('pattern', 'replacement')) for file in args.rule]
    before = proving.begin(args)
    model, counts = before, {}
    for file, rule in zip(args.rule, rules, strict=True):
        check = getattr(rule, 'check', None)
        model, counts[file] = replace(model, rule.pattern, rule.replacement, check)
        print(printable(f'{file}: {counts[file]} places replaced'))
    if any(counts.values()):
        edits.record(model, 'replace')
    return proving.finish(args, before, model, dict(rules=counts))


@COMMANDS.add('simplify', 'Simplify a graph with onnxslim', *proving.proof(TOLERANCE))
def run_simplify(args: argparse.Namespace) -> int:
    from mmdeploy_ext.graphs import edits
    from mmdeploy_ext.graphs.passes.simplify import simplify

    model = proving.begin(args)
    result = simplify(model)
    edits.record(result, 'simplify')
    sizes = [len(model.graph.node), len(result.graph.node)]
    print(f'{args.file}: {sizes[0]} nodes, {sizes[1]} are left')
    return proving.finish(args, model, result, dict(nodes_before=sizes[0], nodes_after=sizes[1]))


@COMMANDS.add(
    'fp16',
    'Convert a graph to float16, except for nodes that must stay in float32',
    argument(
        '--keep-fp32 PATTERN',
        "nodes that stay in float32, by name, operator, module or output: '/decoder/*', Softmax; repeatable",
        [],
        action='append',
    ),
    argument(
        '--io', 'float type of inputs and outputs (default: %(default)s)', 'fp32', choices=('fp32', 'fp16')
    ),
    *proving.proof(FP16_TOLERANCE),
)
def run_fp16(args: argparse.Namespace) -> int:
    from mmdeploy_ext.graphs import edits
    from mmdeploy_ext.graphs.passes.precision import family_patterns, half, with_fp16_metadata
    from mmdeploy_ext.graphs.passes.select import matching_nodes

    model = proving.begin(args)
    matching_nodes(model.graph.node, args.keep_fp32)
    patterns = list(dict.fromkeys((*family_patterns(model), *args.keep_fp32)))
    result, float_nodes = half(model, args.io, patterns)
    result = with_fp16_metadata(result, args.io == 'fp16', patterns)
    edits.record(result, 'fp16')
    before, after = (
        sum(node.op_type == 'Cast' for node in nodes) for nodes in (model.graph.node, result.graph.node)
    )
    print(f'{args.file}: {float_nodes} nodes kept float32 by name, {after - before} casts added')
    hint = f'keep nodes with --keep-fp32, {proving.HINT}'
    content = dict(kept=float_nodes, casts=after - before)
    return proving.finish(args, model, result, content, any_float=True, hint=hint)


@COMMANDS.add(
    'write-tables',
    'Write the tables of a camera rig that the program of a folder computes itself',
    argument('folder FOLDER', 'of an export'),
    argument('--contract NAME', 'contract of the folder (default: detected from its files)'),
    argument('calibration CALIBRATION', '.npz file with the matrices of a camera rig'),
    output('FILE', 'the tables, .npz'),
    takes_file=False,
)
def run_tables(args: argparse.Namespace) -> int:
    name, module = find_contract(args, rig_tables())
    check_writable(args.out)
    facts = module.write_tables(args.folder, args.calibration, args.out)
    write_json(args, dict(folder=args.folder, contract=name, output=args.out, **facts))
    counts = ', '.join(f'{count} {fact.replace("_", " ")}' for fact, count in facts.items())
    cli.say(cli.stdout(), f'{args.out}: {counts}')
    return 0
