"""`mm2onnx judge`: are the outputs of an engine, for the inputs of a kit, PyTorch's results?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.kit.judge import PRECISIONS, judge
from mmdeploy_ext.kit.local_run import ENGINES, run_kit
from mmdeploy_ext.util import cli
from mmdeploy_ext.util.errors import UsageError
from mmdeploy_ext.util.files import write_json

if TYPE_CHECKING:
    import argparse

    from mmdeploy_ext.verdict.results import SequenceRow

MAX_FAILURES = 8
"""Printed failures; --json has all."""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description="Judge the outputs of an engine for the inputs of a kit against PyTorch's results: exit "
        'status 0 equal, 1 not, 2 usage. Needs no PyTorch.'
    )
    add = cli.adder(parser)
    add('kit KIT', 'folder that mm2onnx kit wrote')
    add('outputs OUTPUTS', 'folder with CASE.npz, CASE.json of trtexec, or CASE/NAME.npy or .bin')
    add(
        '--run ENGINE',
        'first run the inputs on an engine of this machine and write OUTPUTS, a new folder; in float16 '
        'with --precision fp16',
        choices=ENGINES,
    )
    add('--told WORDS', 'device, engine and version, for the verdict; unchecked', '')
    add('--precision', "precision that decides the tolerances (default: the file's)", choices=PRECISIONS)
    add('--json FILE', 'write the verdict as JSON')
    return parser


def run(args: argparse.Namespace) -> int:
    ran = ''
    if args.run:
        if args.told:
            raise UsageError('--told: does not go with --run, which tells what ran')
        ran = run_kit(args.kit, args.outputs, args.run, fp16=args.precision == 'fp16')
    judgement = judge(args.kit, args.outputs, told=args.told, precision=args.precision)
    judgement.ran = ran
    if args.json:
        write_json(args.json, judgement.to_json())
    for case in judgement.cases:
        matched = sum(row.matched for row in case.detections)
        results = f', {matched} results matched' if case.detections else ''
        print(f'{"ok    " if case.passed else "FAILED"} {case.name}: {len(case.tensors)} tensors{results}')
    for row in judgement.sequences:
        print_drift(row)
    for note in judgement.notes:
        print(f'note: {note}')
    for failure in judgement.failures[:MAX_FAILURES]:
        print(f'differs: {failure}')
    if (hidden := len(judgement.failures) - MAX_FAILURES) > 0:
        print(f'differs: {hidden} more; --json has them all')
    print(judgement.title)
    return 0 if judgement.equal else 1


def print_drift(row: SequenceRow) -> None:
    """Print a drive's worst tensor by tolerance, and matched results."""
    print(f'{"ok    " if row.passed else "FAILED"} {row.title}: {row.frames} frames, {row.resets} resets')
    series = row.series
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
        print(f'       {name}: {drift}, {matched}{reset}')


main = cli.program(run, build_parser)
