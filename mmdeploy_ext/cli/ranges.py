"""INT8 ranges of sparse backbones, for the tools that measure or write them. Needs no torch before `find`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.cli.options import CFG_OPTIONS_HELP
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.quantize import METHODS

if TYPE_CHECKING:
    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.sparse.ranges import Ranges

LAYOUTS = ('auto', 'spconv1', 'spconv2', 'spconv2-rskc')


def add_backbone_arguments(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG, CHECKPOINT, --cfg-options and --weight-layout."""
    add = cli.adder(parser)
    add('config', 'config file')
    add('checkpoint', 'checkpoint file, in any published form')
    add('--cfg-options KEY=VALUE...', CFG_OPTIONS_HELP)
    add(
        '--weight-layout',
        "of the checkpoint's kernels (default: auto, which refuses what cannot be told)",
        'auto',
        choices=LAYOUTS,
    )


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Add --calibrate, how it is done, and --ranges."""
    add = cli.adder(group)
    add(
        '--calibrate DIR|INFOS',
        'measure them on a folder of sweeps (.bin, .npy, .npz) or infos of mmdet3d (.pkl, .json)',
    )
    add(
        '--ranges FILE', 'of an earlier calibration, edited or not (default: those in the checkpoint, if any)'
    )
    add('--method', 'of inputs (default: mse)', METHODS[0], choices=METHODS)
    add('--batches N', 'sweeps, evenly; 0 takes all (default: 100)', 100)
    add(
        '--fp16-ranges',
        'round ranges to fp16 (default: as the reference, which does for BEVFusion)',
        action=argparse.BooleanOptionalAction,
    )
    add('--data-root DIR', 'where the sweeps of infos are', '')


def check(args: argparse.Namespace) -> None:
    """Refuse sweeps and ranges that are none, or both of them; `args.known` are those of `--ranges`."""
    from mmdeploy_ext.quantize.sweeps import sweep_items
    from mmdeploy_ext.sparse.ranges import Ranges

    if args.calibrate and args.ranges:
        raise UsageError('--calibrate makes ranges and --ranges reads them: give one of the two')
    cli.check_least(args, batches=0)
    if args.calibrate:
        sweep_items(args.calibrate)
    args.known = Ranges.load(args.ranges) if args.ranges else None


def find(args: argparse.Namespace, deployment: Deployment, target: str, **how: Any) -> Ranges | None:
    """Return the ranges of `--ranges`, those that `--calibrate` measures and writes, or of the checkpoint.

    Args:
        args: of `add_arguments`, after `check`.
        deployment: of the backbone.
        target: file for measured ones.
        how: more fields of `Calibration`.
    """
    from mmdeploy_ext.quantize import sparse_calibration

    if args.known is not None:
        return args.known.half() if args.fp16_ranges else args.known
    if not args.calibrate:
        return sparse_calibration.checkpoint_ranges(deployment, args.fp16_ranges)
    given = dict(method=args.method, batches=args.batches, half=args.fp16_ranges, root=args.data_root)
    options = sparse_calibration.Calibration(**given, **how)
    ranges = sparse_calibration.calibrate(deployment, args.calibrate, options)
    save(ranges, target)
    return ranges


def save(ranges: Ranges, target: str) -> None:
    """Write ranges and say so."""
    ranges.save(target)
    text = f'{target}: ranges of {len(ranges.nodes)} layers by {ranges.calibrator}'
    if ranges.batches:
        text += f', {ranges.batches} sweep{"s" * (ranges.batches > 1)} of {ranges.source}'
    print(text)
