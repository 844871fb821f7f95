"""Convert a checkpoint or a config of mmdet 3 to mmdet 2.28.

`python tools/convert/mmdet3.py IN.pth OUT.pth --config CONFIG2X` renames the weights of a checkpoint; without
OUT.pth, IN.pth would be a config to write, and is refused. `python tools/convert/mmdet3.py --config
CONFIG3X.py [OUT.py]` translates a config, or prints it if there is no OUT.py. An output that is there already
is replaced, unless it is an input, too.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from mmdeploy_ext import compat
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.config import load_config


class Parser(cli.ArgumentParser):
    """Parser of `in_file` and `out_file`, each of which may be left out.

    A single file is the output, of a config that is translated; of two the first is the input.
    """

    def parse_known_args(self, *positional: Any, **named: Any) -> Any:
        """Return the arguments, a single file as `out_file`, and the words that are left over.

        It is called as that of `argparse.ArgumentParser`; a file that the user did not name is None.
        """
        args, rest = super().parse_known_args(*positional, **named)
        if args.out_file is None and len(rest) == 1 and not rest[0].startswith('-'):
            args.out_file, rest = rest[0], []  # argparse takes no second file behind an option
        if args.out_file is None:
            args.in_file, args.out_file = None, args.in_file
        return args, rest


def convert(args: argparse.Namespace) -> int:
    """Convert the checkpoint `args.in_file`, or, if it is None, the config `args.config`, to `args.out_file`.

    A config is printed if `args.out_file` is None. Return 0; for what is raised see `convert_file` and
    `translate_file` of `weights.convert.mmdet3`.
    """
    compat.apply()
    from mmdeploy_ext.families.base import load_families
    from mmdeploy_ext.weights.convert.mmdet3 import convert_file, translate_file

    load_families('')  # those of mmdet, which register the classes of models
    target = args.out_file
    if args.in_file is None:
        text = translate_file(args.config, target)
        print(text if target is None else f'{target}: a config of mmdet 2.28 to export, prove and test with')
        return 0
    converted = convert_file(args.in_file, target, load_config(args.config))
    numbers = sum(tensor.numel() for tensor in converted.state_dict.values())
    tensors = f'{len(converted.state_dict)} tensors, {numbers / 1e6:.2f} M numbers'
    print(f'{target}: {tensors}, {converted.renamed} renamed')
    for key in converted.left_out:
        print(f'  left out: {key}')
    print(f'use it with {args.config}')
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = Parser(description=__doc__.splitlines()[0])
    add = cli.adder(parser)
    add('in_file', 'checkpoint of mmdet 3; left out if a config is translated', nargs='?')
    add('out_file', 'checkpoint, or config ending in .py, to write', nargs='?', writes='{}')
    add(
        '--config CONFIG',
        'beside IN.pth: config of mmdet 2.28 of its model; else the config of mmdet 3 to translate, or a '
        'checkpoint that holds it',
        required=True,
    )
    cli.add_debug_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status: 0 done, 1 failed, 2 a refused option or file.

    Other statuses are those of `core.cli.run`. `argv` are the words of the command line, by default those of
    the process. SystemExit: --help, or an option that the parser refuses, which is status 2.
    """
    return cli.run(convert, build_parser(), argv)
