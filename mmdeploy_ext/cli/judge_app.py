"""`mm2onnx judge`: are the outputs of an engine, for the inputs of a kit, PyTorch's results?"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import UsageError, printable
from mmdeploy_ext.base.files import write_json
from mmdeploy_ext.bench.kit.judge import PRECISIONS, judge, title_of, to_json
from mmdeploy_ext.bench.kit.local_run import ENGINES, run_kit
from mmdeploy_ext.spec.verdict import Finding

MAX_FAILURES = 8
"""Printed failures; --json has all."""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description="Compare an engine's outputs for the inputs of a kit with PyTorch's results. Exit "
        'status: 0 equal, 1 not equal, 2 usage. Needs no PyTorch.'
    )
    add = cli.adder(parser)
    add('kit KIT', 'folder that mm2onnx kit wrote')
    add('outputs OUTPUTS', 'folder with CASE.npz, CASE.json of trtexec, or CASE/NAME.npy or .bin')
    add(
        '--run ENGINE',
        'first run the inputs on an engine of this machine (in float16 with --precision fp16) and write '
        'OUTPUTS, a new folder',
        choices=ENGINES,
    )
    add('--told WORDS', 'device, engine and version to print in the verdict; not checked', '')
    add('--precision', "precision that decides the tolerances (default: the file's)", choices=PRECISIONS)
    add('--json FILE', 'write the verdict as JSON')
    return parser


def run(args: argparse.Namespace) -> int:
    ran = ''
    if args.run:
        if args.told:
            raise UsageError('--told: cannot be used with --run, which reports what ran')
        ran = run_kit(args.kit, args.outputs, args.run, fp16=args.precision == 'fp16')
    verdict = judge(args.kit, args.outputs, told=args.told, precision=args.precision)
    verdict.subject['ran'] = ran
    if args.json:
        write_json(args.json, to_json(verdict))
    for _, found in itertools.groupby(verdict.with_figure('case'), lambda finding: finding.figures['case']):
        print_case(list(found))
    for finding in verdict.with_figure('frames'):
        print_drift(finding, verdict.series[finding.subject])
    for note in verdict.notes:
        print(printable(f'note: {note}'))
    for failure in verdict.failures[:MAX_FAILURES]:
        print(printable(f'differs: {failure}'))
    if (hidden := len(verdict.failures) - MAX_FAILURES) > 0:
        print(f'differs: {hidden} more; see --json for all')
    print(printable(title_of(verdict)))
    return 0 if verdict.passed else 1


def print_case(found: Sequence[Finding]) -> None:
    """Print how many tensors and results of one input were compared."""
    tensors = sum('tensor' in finding.figures for finding in found)
    matched = [finding.figures['matched'] for finding in found if 'image' in finding.figures]
    results = f', {sum(matched)} results matched' if matched else ''
    passed = all(finding.passed for finding in found)
    title = printable(found[0].figures['input'])
    print(f'{"ok    " if passed else "FAILED"} {title}: {tensors} tensors{results}')


def print_drift(finding: Finding, series: Mapping[str, Any]) -> None:
    """Print a drive's worst tensor by tolerance, and matched results."""
    frames, resets = (finding.figures[name] for name in ('frames', 'resets'))
    print(f'{"ok    " if finding.passed else "FAILED"} {finding.subject}: {frames} frames, {resets} resets')
    for index, name in enumerate(series['name']):
        ratios = {tensor: values[index] for tensor, values in series['ratios'].items() if index < len(values)}
        worst, ratio = max(
            ((tensor, ratio) for tensor, ratio in ratios.items() if ratio is not None),
            key=lambda pair: pair[1],
            default=('', 0.0),
        )
        drift = f'{worst} {ratio:.2g} of its tolerance' if worst else 'no tensor was compared'
        reset = ', memory emptied' if series['reset'][index] else ''
        matched = f'{series["matched"][index]} of {series["reference"][index]} results matched'
        print(printable(f'       {name}: {drift}, {matched}{reset}'))


main = cli.program(run, build_parser)
