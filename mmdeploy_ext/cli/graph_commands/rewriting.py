"""`graph.py replace, simplify, fp16`: the same graph in other operators."""

import argparse

from mmdeploy_ext.base.errors import printable
from mmdeploy_ext.cli.graph_commands import proving
from mmdeploy_ext.cli.graph_commands.command import Commands, argument

COMMANDS = Commands()
TOLERANCE = 1e-4
FP16_TOLERANCE = 1e-2
"""Defaults of --tolerance: largest difference of an output relative to its largest value."""


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
