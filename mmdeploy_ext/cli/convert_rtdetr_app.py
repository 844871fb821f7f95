"""Convert a checkpoint of the original RT-DETR repository (PyTorch) or of transformers.

`python tools/convert/rtdetr.py IN OUT.pth --config CONFIG`: .pth of lyuwenyu/RT-DETR (EMA weights where the
file holds them); .bin, .pth or .safetensors of RTDetrForObjectDetection of transformers 4 or 5.
"""

import argparse
import shlex
from collections.abc import Sequence

from mmdeploy_ext import compat
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.config import load_config


def convert(args: argparse.Namespace) -> int:
    """Convert the checkpoint to one of this project's RT-DETR, whose tensors have the original's names.

    Printed are where its weights are from and what was joined, added and left out. `args` are those of
    `build_parser`. Return 0; for what is raised see `convert_file` of `weights.convert.rtdetr`.
    """
    compat.apply()
    from mmdeploy_ext.families.base import load_families
    from mmdeploy_ext.weights.convert.rtdetr import convert_file

    load_families('')  # those of mmdet, which register the classes of models
    cfg = load_config(args.config, shared.parse_cfg_options(args.cfg_options))
    converted = convert_file(args.in_file, args.out_file, cfg, args.weights)
    numbers = sum(tensor.numel() for tensor in converted.state_dict.values())
    print(f'{args.out_file}: {len(converted.state_dict)} tensors, {numbers / 1e6:.2f} M numbers')
    print('\n'.join(f'  {note}' for note in (f'from {converted.origin}', *converted.notes)))
    words = [args.config, *(['--cfg-options', *args.cfg_options] if args.cfg_options else [])]
    print(f'use it with {shlex.join(words)}')
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    add = cli.adder(parser)
    add('in_file', 'checkpoint of the original repository or of transformers')
    add('out_file', 'checkpoint to write', writes='{}')
    add('--config CONFIG', 'config of the same model, configs/rtdetr/*.py', required=True)
    add('--cfg-options KEY=VALUE...', shared.CFG_OPTIONS_HELP)
    add(
        '--weights',
        'of an original file: EMA weights where it holds them (auto, default), or one of both kinds',
        'auto',
        choices=('auto', 'ema', 'model'),
    )
    cli.add_debug_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status: 0 done, 1 failed, 2 a refused option or file.

    Other statuses are those of `core.cli.run`. `argv` are the words of the command line, by default those of
    the process. SystemExit: --help, or an option that the parser refuses, which is status 2.
    """
    return cli.run(convert, build_parser(), argv)
