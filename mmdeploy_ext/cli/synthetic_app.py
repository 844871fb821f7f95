"""`mm2onnx synthetic`: generated data sets and seeded weights, for proofs and demonstrations without data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.cli import infos_app
from mmdeploy_ext.cli.options import CFG_OPTIONS_HELP, parse_cfg_options
from mmdeploy_ext.seeded import image as seeded_image
from mmdeploy_ext.synthetic import coco, monocular, nuscenes
from mmdeploy_ext.util import cli

if TYPE_CHECKING:
    from collections.abc import Sequence


def add_seeded(parser: cli.ArgumentParser) -> None:
    parser.add_argument('config')
    output = cli.add_output(parser, '--out FILE', 'checkpoint to write; never overwritten', type=Path)
    parser.take_output_by_position(output)
    parser.add_argument('--seed', type=int, default=0)
    cli.adder(parser)('--cfg-options KEY=VALUE...', CFG_OPTIONS_HELP)


def run_seeded(args: argparse.Namespace) -> int:
    from mmdeploy_ext.seeded import weights as seeded

    return seeded.run(args, parse_cfg_options(args.cfg_options))


KINDS = {
    'coco': (coco.add_arguments, coco.run, 'a COCO set of coloured shapes'),
    'monocular': (
        monocular.add_arguments,
        monocular.run,
        'annotations of single pictures of a nuScenes set of drives',
    ),
    'nuscenes': (nuscenes.add_arguments, nuscenes.run, 'a nuScenes set of drives: cameras and LiDAR'),
    'panoptic': (coco.add_panoptic_arguments, coco.run_panoptic, 'panoptic annotations of the COCO set'),
    'infos': (infos_app.add_arguments, infos_app.run, 'the info files of a nuScenes set'),
    'weights': (add_seeded, run_seeded, 'a checkpoint of seeded weights for a config'),
    'seeded-image': (
        seeded_image.add_arguments,
        seeded_image.run,
        'a seeded input image of reference tensors, with its sizes',
    ),
}
"""Name -> function that adds its options, function that runs it, and a line of help."""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description='Generate data sets, info files, or seeded weights.')
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')
    for name, (add_arguments, _, title) in KINDS.items():
        add_arguments(kinds.add_parser(name, help=title, description=f'Generate {title}.'))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda args: KINDS[args.kind][1](args), build_parser(), argv)
