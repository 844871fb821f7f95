"""The verdict of a proof on the command line: table, JSON file, report, exit status."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.commands import command
from mmdeploy_ext.base.errors import one_line, printable
from mmdeploy_ext.base.files import check_writable, write_json
from mmdeploy_ext.base.user_modules import libraries_not_run, not_run_text
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.runtime.tasks import task_module
from mmdeploy_ext.upstream.compat import replaced

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import numpy as np

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.spec.results import Pair
    from mmdeploy_ext.spec.verdict import Verdict

PICTURE_WIDTH = 1100
"""Width of the picture of `draw_pairs`, pixels."""


def check_report_targets(args: argparse.Namespace) -> None:
    """Raise UsageError for a folder of --report that cannot be written, before the weights load."""
    if args.report:
        check_writable(Path(args.report) / 'report.html')


def show(verdict: Verdict, detector: Detector, args: argparse.Namespace) -> int:
    """Write a verdict as JSON and report, and print its table; return the exit status.

    A verdict below float32 passes within the tolerances of its precision; its title does not say PROVEN then.
    """
    from mmdeploy_ext.proving.views.table import print_verdict

    if args.json:
        write_json(args.json, verdict.to_json())
    lines = []
    if args.report:
        try:
            lines = _reported(verdict, detector, Path(args.report))
        except Exception as error:  # a task of the user draws; the verdict stands without its pictures
            lines = [f'report: not complete, {type(error).__name__}: {one_line(error)}']
    print_verdict(verdict, cli.stdout())
    for line in lines:
        print(line)
    return 0 if verdict.passed else 1


def _reported(verdict: Verdict, detector: Detector, folder: Path) -> list[str]:
    from mmdeploy_ext.proving.views.report import write_report
    from mmdeploy_ext.runtime.draw import write_picture

    picture = folder / 'detections.png'
    picture.unlink(missing_ok=True)
    lines = [f'report: {write_report(verdict, detector.classes, folder)}']
    if verdict.pairs and detector.family.task != 'bev':  # a map from above has no detections
        write_picture(picture, draw_pairs(verdict.pairs, detector))
        lines.append(f'image: {picture}')
    return lines


def draw_pairs(pictures: Sequence[Pair], detector: Detector) -> np.ndarray:
    """Up to four samples, one per row, with both engines' detections: (h, w, 3) uint8 BGR."""
    import cv2
    import numpy as np

    pair_of_image = {pair.title.split(',')[0]: pair for pair in pictures}  # titles begin with 'IMAGE, '
    task, rows = task_module(detector.family.task), []
    for pair in list(pair_of_image.values())[:4]:
        row = task.draw_pair(task.fit_pair(pair), detector.classes)
        size = PICTURE_WIDTH, round(row.shape[0] * PICTURE_WIDTH / row.shape[1])
        rows.append(cv2.resize(row, size, interpolation=cv2.INTER_AREA))
    return np.concatenate(rows)


def print_replaced() -> None:
    """Print what stands in for parts of the user's code."""
    for line in replaced.lines(replaced.facts()):
        print(printable(line))


def print_libraries_not_run(cfg: Any, args: argparse.Namespace) -> None:
    """Print which libraries of the user's repository do not run, if any."""
    if not_run := libraries_not_run(cfg):
        advice = '' if args.library else '; to prove it, add --library installed'
        print(not_run_text(not_run) + advice)


def print_proof_command(name: str, words: list[str], args: argparse.Namespace) -> None:
    """Print that nothing was proven, and the command that does it."""
    words = [*words, *shared.proof_words(args)]
    print(f'NOT PROVEN: nothing was compared. Prove it with\n  {command(name)} {shlex.join(words)}')
