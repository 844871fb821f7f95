"""INT8 ranges of sparse backbones, for the tools that measure or write them; only `find` needs torch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.exporting.int8 import Calibration

if TYPE_CHECKING:
    from mmdeploy_ext.exporting.sparse.ranges import Ranges
    from mmdeploy_ext.families.detector import Detector

LAYOUTS = ('auto', 'spconv1', 'spconv2', 'spconv2-rskc')
"""Values of --weight-layout."""


def add_weight_layout(parser: argparse.ArgumentParser) -> None:
    cli.add(
        parser,
        '--weight-layout',
        "layout of the checkpoint's kernels (default: auto: by their shapes; ambiguous shapes are an error)",
        'auto',
        choices=LAYOUTS,
    )


def add_arguments(group: argparse._ArgumentGroup) -> None:
    add = cli.adder(group)
    add(
        '--calibrate DIR|INFOS',
        'measure ranges on a folder of sweeps (.bin, .npy, .npz) or infos of mmdet3d (.pkl, .json)',
    )
    add(
        '--ranges FILE',
        'use the ranges of an earlier calibration (default: ranges in the checkpoint, if any)',
    )
    cli.add_fields(group, Calibration, 'method batches half root')


def check(args: argparse.Namespace) -> None:
    """Check the options of `add_arguments`, and read --ranges to `args.loaded_ranges`."""
    from mmdeploy_ext.exporting.sparse.ranges import Ranges
    from mmdeploy_ext.runtime.sweeps import sweep_items

    if args.calibrate and args.ranges:
        raise UsageError('--calibrate measures ranges and --ranges reads them: pass only one')
    cli.check_minimums(args, batches=0)
    if args.calibrate:
        sweep_items(args.calibrate)
    args.loaded_ranges = Ranges.load(args.ranges) if args.ranges else None


def find(args: argparse.Namespace, detector: Detector, target: str) -> Ranges | None:
    """Ranges of `--ranges`, of `--calibrate`, which writes them to `target`, or of the checkpoint.

    `--fp16-ranges` rounds them to float16, `--no-fp16-ranges` does not. Without either, `--ranges` stay,
    other ranges are rounded as in the family's reference.
    """
    from mmdeploy_ext.bench.precision import sparse_calibration
    from mmdeploy_ext.families import backbone_files

    if args.loaded_ranges is not None:
        return args.loaded_ranges.half() if args.half else args.loaded_ranges
    if not args.calibrate:
        return backbone_files.checkpoint_ranges(detector, args.half)
    calibration = Calibration(**cli.given_of(Calibration, args))
    ranges = sparse_calibration.calibrate(detector, args.calibrate, calibration)
    save(ranges, target)
    return ranges


def save(ranges: Ranges, target: str) -> None:
    ranges.save(target)
    text = f'{target}: ranges of {len(ranges.nodes)} layers by {ranges.calibrator}'
    if ranges.batches:
        text += f', {ranges.batches} sweep{"s" if ranges.batches > 1 else ""} of {ranges.source}'
    print(text)
