"""`mm2onnx synthetic`: generated data sets and weights, for proofs and demonstrations without data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmdeploy_ext.base import cli
from mmdeploy_ext.cli import infos_app, weights_app
from mmdeploy_ext.families.synthetic import coco, monocular, nuscenes

KINDS = {
    'coco': (coco.add_arguments, coco.run, 'a COCO data set of coloured shapes'),
    'monocular': (
        monocular.add_arguments,
        monocular.run,
        'single-image annotations of a nuScenes data set',
    ),
    'nuscenes': (nuscenes.add_arguments, nuscenes.run, 'a nuScenes data set: cameras and LiDAR'),
    'panoptic': (coco.add_panoptic_arguments, coco.run_panoptic, 'panoptic annotations of a COCO data set'),
    'infos': (infos_app.add_arguments, infos_app.run, 'the info files of a nuScenes data set'),
    'weights': (weights_app.add_arguments, weights_app.run, 'a checkpoint for any detector config'),
}
"""Name -> function that adds its options, function that runs it, and a line of help."""
MORE = dict(weights=weights_app.DESCRIPTION)
"""Name -> further sentences of its --help."""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description='Generate data sets, info files, or weights.')
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')
    for name, (add_arguments, _, title) in KINDS.items():
        add_arguments(
            kinds.add_parser(name, help=title, description=f'Generate {title}.{MORE.get(name, "")}')
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda args: KINDS[args.kind][1](args), build_parser(), argv)
