"""`graph.py replace, simplify, fp16`: the same graph in other operators."""

import argparse

from mmdeploy_ext.cli.graph_commands import proving
from mmdeploy_ext.cli.graph_commands.command import Commands, argument
from mmdeploy_ext.core.errors import UsageError, printable

COMMANDS = Commands()
TOLERANCE = 1e-4
FP16_TOLERANCE = 1e-2
"""Defaults of --tolerance, of the commands that keep the precision and of fp16: the largest difference of an
output, relative to its largest value."""


@COMMANDS.add(
    'replace',
    'Replace patterns of nodes by other nodes',
    argument(
        '--rule',
        "what to replace, e.g. 's = Sigmoid(a); y = Mul(a, s) -> y = Swish(a)'; may be repeated",
        [],
        action='append',
        metavar="'PATTERN -> NODES'",
    ),
    argument('--rules FILE', 'file of rules, one per line, # begins a comment'),
    *proving.proof(TOLERANCE),
)
def run_replace(args: argparse.Namespace) -> int:
    """Replace the patterns of --rule and --rules, and save the graph.

    `args` are the parsed arguments of this command. Return 0 written, 1 not written, as an output
    differs, see `proving.finish`. UsageError: no rule, or one that is unknown or cannot be read.
    """
    from pathlib import Path

    from mmdeploy_ext.graph import edits
    from mmdeploy_ext.graph.passes.pattern_text import parse_rule, rule_lines
    from mmdeploy_ext.graph.passes.replace import replace

    texts = list(args.rule)
    if args.rules:
        if not Path(args.rules).is_file():
            raise UsageError(f'--rules {args.rules}: no such file')
        try:
            texts += rule_lines(Path(args.rules).read_text(encoding='utf-8'))
        except UnicodeDecodeError as error:
            raise UsageError(f'--rules {args.rules}: is no text in UTF-8 ({error})') from error
    rules = [parse_rule(text) for text in texts]
    if not rules:
        raise UsageError('nothing to replace: give --rule or --rules')
    before = proving.begin(args)
    model, reports = before, []
    for rule in rules:
        model, report = replace(model, rule)
        reports.append(report)
        print(f'{report.count} places replaced by {report.rule}')
        for reason in report.reasons:
            print(printable(f'  {reason}'))
    content = [dict(rule=report.rule, count=report.count, kept=list(report.reasons)) for report in reports]
    if any(report.count for report in reports):
        edits.record(model, 'replace')
    return proving.finish(args, before, model, dict(rules=content))


@COMMANDS.add('simplify', 'Simplify a graph with onnxslim', *proving.proof(TOLERANCE))
def run_simplify(args: argparse.Namespace) -> int:
    """Simplify a graph by onnxslim, and save it.

    `args` are the parsed arguments of this command. Return 0 written, 1 not written, as an output
    differs, see `proving.finish`.
    """
    from mmdeploy_ext.graph.passes.simplify import simplify

    return _shrink(args, 'simplify', simplify)


def _shrink(args: argparse.Namespace, command: str, change: object) -> int:
    from mmdeploy_ext.graph import edits

    model = proving.begin(args)
    result = change(model)
    edits.record(result, command)
    sizes = [len(model.graph.node), len(result.graph.node)]
    print(f'{args.file}: {sizes[0]} nodes, {sizes[1]} are left')
    before, after = (
        {f'{function.domain}.{function.name}' for function in functions}
        for functions in (model.functions, result.functions)
    )
    inlined = sorted(before - after)
    if inlined:
        print(f'local functions written out in place of the nodes that called them: {", ".join(inlined)}')
    content = dict(nodes_before=sizes[0], nodes_after=sizes[1], functions_written_out=inlined)
    return proving.finish(args, model, result, content)


@COMMANDS.add(
    'fp16',
    'Write float16 into a graph, but for what has to stay float32',
    argument(
        '--keep-fp32 PATTERN',
        "nodes that stay float32 by name, operator, module or output: '/decoder/*', Softmax; repeatable",
        [],
        action='append',
    ),
    argument('--io', 'floats of inputs and outputs (default: %(default)s)', 'fp32', choices=('fp32', 'fp16')),
    *proving.proof(FP16_TOLERANCE),
)
def run_fp16(args: argparse.Namespace) -> int:
    """Write float16 into a graph, but for nodes that stay float32, and save it.

    These are the nodes of --keep-fp32, those that the family of an exported file keeps, and those of
    `graph.passes.precision.fp32_patterns`, such as the post-processing.

    `args` are the parsed arguments of this command. Return 0 written, 1 not written, as an output
    differs, see `proving.finish`. UsageError: a pattern of --keep-fp32 that no node fits.
    """
    from mmdeploy_ext.graph import edits
    from mmdeploy_ext.graph.passes.precision import family_patterns, half, with_fp16_metadata
    from mmdeploy_ext.graph.passes.select import matching_nodes

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
