"""Make the info files of a data set; see --help."""

import argparse

from mmdeploy_ext.base import cli
from mmdeploy_ext.upstream import compat


def run(args: argparse.Namespace) -> int:
    compat.apply()
    from mmdeploy_ext.families.synthetic.nuscenes_infos import create_infos

    counts = create_infos(
        args.root_path, args.out or args.root_path, args.extra_tag, args.version, args.max_sweeps
    )
    for path, count in counts.items():
        print(f'{path}: {count} key frames')
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Names are mmdet3d's of create_data.py."""
    add = cli.adder(parser)
    root = add(
        '--root-path DIR', 'folder with the tables and samples/ (default: %(default)s)', 'data/nuscenes'
    )
    cli.writes(root, '')  # the info files of an earlier run are made again
    text = 'folder of the info files (default: the folder of the data)'
    cli.add(parser, '--out --out-dir DIR', text, writes='')
    add(
        '--extra-tag TAG',
        'writes TAG2d_temporal_infos_*.pkl and TAG_infos_*.pkl (default: %(default)s)',
        'nuscenes',
    )
    add('--version VERSION', 'v1.0-trainval, v1.0-mini or v1.0-test (default: %(default)s)', 'v1.0-trainval')
    add('--max-sweeps N', 'LiDAR sweeps before a key frame to list (default: %(default)s)', 10)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__.split(';')[0])
    cli.add(parser, 'dataset', choices=['nuscenes'])
    add_arguments(parser)
    return parser


main = cli.program(run, build_parser)
