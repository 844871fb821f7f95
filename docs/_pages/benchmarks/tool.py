"""`benchmark_all.py`: every family on every engine that is here, and the page about it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs._pages.benchmarks import cases as case_lists
from docs._pages.benchmarks import page, prepare, whole, whole_results
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

FULL = dict(work_dir='work_dirs/benchmark', page='docs/benchmarks.md', rounds=20, warmup=3, seconds=90)
QUICK = dict(
    work_dir='work_dirs/benchmark/quick',
    page='work_dirs/benchmark/quick/benchmarks.md',
    rounds=3,
    warmup=1,
    seconds=10,
)
"""What an option is when it is not given, of full-size models and with --quick."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Measure every family at full size on every engine that is here, each model with its '
        'engines in turns, and write ratios to PyTorch as a page with charts. A case that fails is reported '
        'and the others go on; exit status 1 then.'
    )
    _add_choice_options(parser)
    _add_round_options(parser)
    _add_output_options(parser)
    cli.add_debug_option(parser)
    return parser


def _add_choice_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--list', action='store_true', help='print the cases and the engines, and leave')
    parser.add_argument(
        '--quick', action='store_true', help='the small trained models of the repository, a few rounds'
    )
    parser.add_argument(
        '--only',
        nargs='+',
        default=[],
        metavar='CASE',
        help='these cases; what --json holds of the others stays',
    )
    parser.add_argument(
        '--engines', nargs='+', metavar='E', help='torch and others (default: all that are here)'
    )
    parser.add_argument(
        '--threads',
        type=int,
        nargs='+',
        metavar='N',
        help='on the CPU, one run each (default: as many as there are cores)',
    )
    parser.add_argument(
        '--sweep', nargs='+', default=[], metavar='FILE', help='real sweeps for LiDAR (default: generated)'
    )


def _add_round_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--rounds', type=int, metavar='N', help='of every run, at most (default: 20; 3 with --quick)'
    )
    parser.add_argument('--warmup', type=int, metavar='N', help='rounds before (default: 3; 1 with --quick)')
    parser.add_argument(
        '--case-seconds',
        type=float,
        metavar='S',
        help='no round of a run begins later, once three count (default: 90; 10 with --quick)',
    )
    parser.add_argument(
        '--minutes',
        type=float,
        metavar='M',
        help='of the whole: what has not begun by then is left out, and said so (default: no end)',
    )
    parser.add_argument('--no-memory', action='store_true', help='do not measure memory')
    parser.add_argument(
        '--prepare', action='store_true', help='make the files and measure memory; time nothing'
    )
    parser.add_argument('--fresh', action='store_true', help='make all files again')


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    cli.writes(
        parser.add_argument(
            '--work-dir', metavar='DIR', help=f'of files and logs (default: {FULL["work_dir"]})'
        ),
        '',
    )
    cli.writes(
        parser.add_argument(
            '--page',
            metavar='F.md',
            help=f'the page; charts go to images/ beside it (default: {FULL["page"]})',
        )
    )
    parser.add_argument('--json', metavar='FILE', help='all ratios (default: as the page, .json)')
    parser.add_argument(
        '--page-only', action='store_true', help='measure nothing: write the page from the JSON file'
    )


def _fill(args: argparse.Namespace) -> None:
    """Put defaults in and refuse what can be refused before anything runs."""
    from mmdeploy_ext.core.files import check_writable, will_write

    defaults = QUICK if args.quick else FULL
    for name, value in defaults.items():
        key = 'case_seconds' if name == 'seconds' else name
        if getattr(args, key) is None:
            setattr(args, key, value)
    if not args.page.endswith('.md'):
        raise UsageError(f'--page {args.page}: expected a .md file')
    args.json = args.json or str(Path(args.page).with_suffix('.json'))
    cli.check_minimums(args, rounds=1, warmup=0, case_seconds=1, minutes=0)
    if args.threads and (min(args.threads) < 1 or len(set(args.threads)) < len(args.threads)):
        raise UsageError(
            f'--threads {" ".join(map(str, args.threads))}: expected positive numbers, each once'
        )
    for path in args.sweep:
        if not Path(path).is_file():
            raise UsageError(f'--sweep {path}: no such file')
    for option, path in (('--page', args.page), ('--json', args.json)):
        check_writable(path)
        will_write(option, [path])


def _settings(args: argparse.Namespace, cores: int) -> whole.Settings:
    from mmdeploy_ext.benchmark.machine import measured_gpu

    return whole.Settings(
        engines=whole.chosen_engines(args.engines),
        threads=sorted(args.threads or [cores]),
        gpu=measured_gpu(),
        rounds=args.rounds,
        warmup=args.warmup,
        seconds=args.case_seconds,
        memory=not args.no_memory,
        only_files=args.prepare,
        sweeps=[os.path.relpath(path, prepare.ROOT) for path in args.sweep],
    )


def _measure(args: argparse.Namespace, cases: Sequence[Any], words: Sequence[str]) -> dict[str, Any]:
    """Run the cases; what is finished is in the JSON file at once."""
    from rich.progress import Progress

    from mmdeploy_ext.benchmark.machine import machine
    from mmdeploy_ext.core.files import write_json

    this_machine = machine()
    settings = _settings(args, this_machine['cores'])
    results = whole_results.read_results(args.json, this_machine, merge=bool(args.only))
    results['commands'].append(prepare.shown(['tools/analysis_tools/benchmark_all.py', *words]))
    console = cli.stderr()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task('', total=len(cases))

        def say(text: str) -> None:
            bar.update(task, description=text)
            console.print(text, highlight=False, markup=False, soft_wrap=True)

        def done(name: str, content: dict[str, Any]) -> None:
            bar.advance(task)
            write_json(args.json, content)
            for reason in whole_results.reasons(content['cases'][name]):
                say(f'{name}: {reason}')

        shop = prepare.Workshop(Path(args.work_dir), args.fresh, this_machine['versions'], say)
        return whole.run_cases(cases, settings, shop, prepare.Deadline(args.minutes), results, done)


def _list(cases: Sequence[Any]) -> int:
    from mmdeploy_ext.engines.registry import ENGINES, engines_of

    for case in cases:
        files = ', '.join(step.label for step in case.files)
        print(f'{case.name:20} {case.title}: {files}; on {", ".join(engines_of(case.kind))}')
    for name, engine in ENGINES.items():
        print(f'{name:20} {engine.absence() or "is here"}')
    return 0


def run(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Measure and write the page; `words` are the command line.

    Returns:
        0 done, 1 when a file could not be made or a run failed.
    """
    _fill(args)
    cases = whole.choose(case_lists.TOYS if args.quick else case_lists.CASES, args.only)
    if args.list:
        return _list(cases)
    if args.page_only:
        page.write(whole_results.read(args.json), args.page)
        return 0
    results = _measure(args, cases, words)
    if not args.prepare:
        page.write(results, args.page)
        print(f'page: {args.page}')
    failed = [case.name for case in cases if whole_results.is_failed(results['cases'][case.name])]
    if failed:
        print(f'failed, in whole or in part: {", ".join(failed)}', file=sys.stderr)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    words = list(sys.argv[1:] if argv is None else argv)
    return cli.run(lambda args: run(args, words), build_parser(), words)
