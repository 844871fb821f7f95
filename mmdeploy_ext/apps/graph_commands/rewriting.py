"""`graph.py replace, fold, simplify, convert-opset, fp16`: the same graph in other operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.apps.graph_commands import proving
from mmdeploy_ext.apps.graph_commands.command import Command

if TYPE_CHECKING:
    import argparse


TOLERANCE = 1e-4
FP16_TOLERANCE = 1e-2


def _replace_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--rule',
        action='append',
        default=[],
        metavar="'PATTERN -> NODES'",
        help="what to replace, e.g. 's = Sigmoid(a); y = Mul(a, s) -> y = Swish(a)'; may be repeated",
    )
    parser.add_argument('--rules', metavar='FILE', help='file of rules, one per line, # begins a comment')
    parser.add_argument(
        '--named',
        action='append',
        default=[],
        metavar='NAME',
        help='a rule that is there already (grid-sample, group-norm, ...); a wrong name lists them all',
    )
    proving.add_proof(parser, TOLERANCE)


def run_replace(args: argparse.Namespace) -> int:
    """Replace patterns of nodes."""
    from pathlib import Path

    from mmdeploy_ext.core.errors import UsageError
    from mmdeploy_ext.graph import edits
    from mmdeploy_ext.graph.passes.named_rules import PASSES, named_rule, replace_all
    from mmdeploy_ext.graph.passes.pattern_text import parse_rule, rule_lines

    texts = list(args.rule)
    if args.rules:
        if not Path(args.rules).is_file():
            raise UsageError(f'--rules {args.rules}: no such file')
        texts += rule_lines(Path(args.rules).read_text(encoding='utf-8'))
    checked = [parse_rule(text) for text in texts]
    checked += [name for name in args.named if name in PASSES or named_rule(name)]
    if not checked:
        raise UsageError('nothing to replace: give --rule, --rules or --named')
    proving.check_output(args)
    before = proving.load(args.file)
    model, reports = replace_all(before, texts, args.named)
    for report in reports:
        print(f'{report.count} places replaced by {report.rule}')
        for reason in report.kept:
            print(f'  {reason}')
    content = [dict(rule=report.rule, count=report.count, kept=list(report.kept)) for report in reports]
    edits.record(model, 'replace', dict(rules=texts, named=args.named))
    return proving.finish(args, before, model, dict(rules=content))


def _fold_arguments(parser: argparse.ArgumentParser) -> None:
    proving.add_proof(parser, TOLERANCE)


def run_fold(args: argparse.Namespace) -> int:
    """Fold constants."""
    from mmdeploy_ext.graph.passes.fold import fold

    return _shrink(args, 'fold', fold)


def run_simplify(args: argparse.Namespace) -> int:
    """Run onnxslim."""
    from mmdeploy_ext.graph.passes.simplify import simplify

    return _shrink(args, 'simplify', simplify, 'onnxslim')


def _shrink(args: argparse.Namespace, command: str, change: object, *packages: str) -> int:
    from mmdeploy_ext.graph import edits

    proving.check_output(args)
    model = proving.load(args.file)
    result = change(model)
    edits.record(result, command, {}, *packages)
    sizes = [len(one.graph.node) for one in (model, result)]
    print(f'{args.file}: {sizes[0]} nodes, {sizes[1]} are left')
    before, after = (
        {f'{function.domain}.{function.name}' for function in one.functions} for one in (model, result)
    )
    inlined = sorted(before - after)
    if inlined:
        print(f'local functions written out in place of the nodes that called them: {", ".join(inlined)}')
    content = dict(nodes_before=sizes[0], nodes_after=sizes[1], functions_written_out=inlined)
    return proving.finish(args, model, result, content)


def _opset_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--opset', type=int, required=True, metavar='N', help='opset to write')
    proving.add_proof(parser, TOLERANCE)


def run_opset(args: argparse.Namespace) -> int:
    """Convert to another opset."""
    from mmdeploy_ext.graph import edits
    from mmdeploy_ext.graph.io.schemas import opsets_of
    from mmdeploy_ext.graph.passes.opset import convert_opset

    proving.check_output(args)
    model = proving.load(args.file)
    result, before = convert_opset(model, args.opset), opsets_of(model)['']
    edits.record(result, 'convert-opset', dict(opset=args.opset), 'onnx')
    sizes = [len(one.graph.node) for one in (model, result)]
    print(f'{args.file}: opset {before} to {args.opset}, {sizes[0]} nodes to {sizes[1]}')
    return proving.finish(args, model, result, dict(opset_before=before, opset_after=args.opset))


def _fp16_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--keep-fp32',
        action='append',
        default=[],
        metavar='PATTERN',
        help="nodes that stay float32 by name, operator, module or output: '/decoder/*', Softmax; repeatable",
    )
    parser.add_argument(
        '--io',
        choices=('fp32', 'fp16'),
        default='fp32',
        help='floats of inputs and outputs (default: %(default)s)',
    )
    proving.add_proof(parser, FP16_TOLERANCE)


def run_fp16(args: argparse.Namespace) -> int:
    """Write float16 into a graph."""
    from mmdeploy_ext.graph import edits
    from mmdeploy_ext.graph.passes.precision import recorded
    from mmdeploy_ext.graph.passes.select import matching_nodes

    proving.check_output(args)
    model = proving.load(args.file)
    matching_nodes(model.graph.node, args.keep_fp32)
    result, kept = edits.half(model, args.io, args.keep_fp32)
    result = recorded(result, args.io == 'fp16', args.keep_fp32)
    edits.record(result, 'fp16', dict(io=args.io, keep_fp32=args.keep_fp32))
    casts = [sum(node.op_type == 'Cast' for node in one.graph.node) for one in (model, result)]
    print(f'{args.file}: {kept} nodes kept float32 by name, {casts[1] - casts[0]} casts added')
    hint = f'keep nodes with --keep-fp32, {proving.HINT}'
    content = dict(kept=kept, casts=casts[1] - casts[0])
    return proving.finish(args, model, result, content, any_float=True, hint=hint)


COMMANDS: dict[str, Command] = {
    'replace': Command('Replace patterns of nodes by other nodes', run_replace, _replace_arguments),
    'fold': Command('Compute what depends on constants alone', run_fold, _fold_arguments),
    'simplify': Command('Simplify a graph with onnxslim', run_simplify, _fold_arguments),
    'convert-opset': Command('Write a graph in another opset', run_opset, _opset_arguments),
    'fp16': Command(
        'Write float16 into a graph, but for what has to stay float32', run_fp16, _fp16_arguments
    ),
}
