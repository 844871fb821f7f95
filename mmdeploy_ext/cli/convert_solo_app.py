"""Convert a checkpoint of the original SOLO repository (WXinlong/SOLO) to mmdet 2.28.2's names.

`python tools/convert/solo_wxinlong.py IN.pth OUT.pth --config CONFIG`: SOLO, Decoupled SOLO, SOLOv2 and the
light ones, with and without DCN. Where CONFIG does not fit (depth of the ResNet, version of the DCN) the
fitting one is written to OUT.py.
"""

import argparse
from collections.abc import Sequence

from mmdeploy_ext import compat
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.config import load_config


def convert(args: argparse.Namespace) -> int:
    """Convert the checkpoint, and print how many tensors it has and what was changed in the config.

    `args` are those of `build_parser`. Return 0; for what is raised see `weights.convert.solo.convert_file`.
    """
    compat.apply()
    from mmdeploy_ext.weights.convert.solo import convert_file

    converted, config = convert_file(args.in_file, args.out_file, load_config(args.config))
    numbers = sum(tensor.numel() for tensor in converted.state_dict.values())
    print(f'{args.out_file}: {len(converted.state_dict)} tensors, {numbers / 1e6:.2f} M numbers')
    if config is None:
        print(f'use it with {args.config}')
        return 0
    print(f'use it with {config}, which differs from {args.config} in')
    print('\n'.join(f'  {change}' for change in converted.changes))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    add = cli.adder(parser)
    add('in_file', 'checkpoint of the original repository')
    add('out_file', 'checkpoint to write', writes='{}')
    add('--config CONFIG', "mmdet's config of the same model", required=True)
    cli.add_debug_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status: 0 done, 1 failed, 2 a refused option or file.

    Other statuses are those of `core.cli.run`. `argv` are the words of the command line, by default those of
    the process. SystemExit: --help, or an option that the parser refuses, which is status 2.
    """
    return cli.run(convert, build_parser(), argv)
