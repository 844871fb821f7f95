"""`graph.py reduce`: the smallest part of a graph that still shows a fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import ShapeError, UsageError, printable
from mmdeploy_ext.cli.graph_commands import proving
from mmdeploy_ext.cli.graph_commands.command import Commands, argument, output, write_json

if TYPE_CHECKING:
    import argparse

    import numpy as np
    import onnx

    from mmdeploy_ext.graphs.reduce.case import Case
    from mmdeploy_ext.graphs.reduce.checks import Check, CheckText
    from mmdeploy_ext.graphs.reduce.search import Reduction

COMMANDS = Commands()
CHECK_HELP = (
    "test for the fault: 'nan' (not finite), 'engines' (ONNX Runtime's optimisations change the result), "
    "'reference' (ONNX Runtime against the reference implementation), 'differs OTHER.onnx', 'crash', or a "
    'shell command that exits with 0 if the fault appears; the file to test replaces {} or is appended, '
    'with inputs.npz beside it'
)


@COMMANDS.add(
    'reduce',
    'Find the smallest part of a graph that still shows a fault',
    argument('--check CHECK', CHECK_HELP, required=True),
    output('DIR', 'new folder for the reduced graph', '{}/model.onnx', '{}/README.md', '{}/case.json'),
    *proving.FEEDS,
    argument(
        '--tolerance T',
        'allowed difference, relative to the largest value (default: %(default)g)',
        1e-4,
    ),
    argument('--timeout S', 'seconds for one run of a command (default: %(default)g)', 60, type=float),
    argument('--max-checks N', 'largest number of checks (default: %(default)s)', 400),
)
def run_reduce(args: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.progress import MofNCompleteColumn

    from mmdeploy_ext.graphs.reduce.checks import parse_check
    from mmdeploy_ext.graphs.reduce.folder import check_folder, save_folder
    from mmdeploy_ext.graphs.reduce.search import reduce

    proving.check_tolerance(args.tolerance)
    if not args.timeout > 0:
        raise UsageError(f'--timeout {args.timeout:g}: expected a positive number of seconds')
    cli.check_minimums(args, max_checks=1)
    check_folder(args.out)
    text = parse_check(args.check)
    feeds, case = _case(args)
    check = _check(args, text, case, feeds)
    with cli.progress('reducing', args.max_checks, MofNCompleteColumn()) as update:

        def report(checks: int, nodes: int) -> None:
            update(completed=checks, description=f'{nodes} nodes left, checks')

        reduction = reduce(case, check, most_checks=args.max_checks, progress=report)
    expected = check.expected(reduction.candidate, case.values)
    source = Path(args.file).name
    save_folder(reduction, args.out, check.facts(), expected, meaning=check.meaning, source=source)
    write_json(args, dict(file=args.file, output=args.out, check=args.check, **_content(reduction)))
    _print(args, reduction)
    return 0


def _case(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], Case]:
    from mmdeploy_ext.graphs.io.index import Index
    from mmdeploy_ext.graphs.reduce.case import Case, prepare, record
    from mmdeploy_ext.graphs.run import check_feeds

    model = proving.load(args.file)
    feeds = proving.read_feeds(args, model, 1)[0]
    check_feeds(Index(model), feeds)
    ready = prepare(model, feeds)
    return feeds, Case(ready, record(ready, feeds))


def _check(args: argparse.Namespace, text: CheckText, case: Case, feeds: dict[str, np.ndarray]) -> Check:
    from mmdeploy_ext.graphs.reduce import checks
    from mmdeploy_ext.graphs.reduce.case import prepare, record

    if text.kind == 'command':
        return checks.Command(text.rest, args.timeout)
    if text.kind == 'crash':
        return checks.Crash()
    if text.kind == 'differs':
        second = prepare(_comparable(text.rest, feeds), feeds)
        return checks.Differs(args.tolerance, record(second, feeds), case.values)
    return checks.NUMERIC[text.kind](args.tolerance)


def _comparable(path: str, feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    from mmdeploy_ext.graphs.io.index import Index
    from mmdeploy_ext.graphs.run import check_feeds

    model = proving.load(path)
    names = {value.name for value in model.graph.input}
    try:
        check_feeds(Index(model), {name: feed for name, feed in feeds.items() if name in names})
    except ShapeError as error:
        raise UsageError(
            f'{path}: does not accept the inputs {", ".join(feeds)} of this graph: {error}'
        ) from error
    return model


def _print(args: argparse.Namespace, reduction: Reduction) -> None:
    candidate = reduction.candidate
    sizes = f'{reduction.nodes_before} nodes, reduced to {len(candidate.positions)}'
    print(printable(f'{args.file}: {sizes} with {reduction.checks} checks'))
    for node in candidate.model.graph.node:
        reads, writes = (', '.join(name for name in names if name) for names in (node.input, node.output))
        print(printable(f'  {node.name or "(no name)"} {node.op_type}: {reads} -> {writes}'))
    if reduction.stopped:
        print(f'stopped early: {reduction.stopped}; this is the smallest part so far')
    print(f'{args.out}: see its README.md; python {args.out}/run.py reproduces the fault')


def _content(reduction: Reduction) -> dict[str, Any]:
    nodes = reduction.candidate.model.graph.node
    return dict(
        nodes_before=reduction.nodes_before,
        nodes=[dict(name=node.name, op_type=node.op_type, outputs=list(node.output)) for node in nodes],
        inputs=list(reduction.candidate.feeds),
        outputs=list(reduction.candidate.outputs),
        checks=reduction.checks,
        stopped=reduction.stopped or None,
    )
