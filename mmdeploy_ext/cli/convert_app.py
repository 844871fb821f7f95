"""`mm2onnx convert`: checkpoints of mmdet 3, RT-DETR and SOLO under the names of mmdet 2.28."""

import argparse
import shlex
from typing import Any

from mmdeploy_ext.api import ModelRequest
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.upstream import compat


def convert_mmdet3(args: argparse.Namespace) -> int:
    from mmdeploy_ext.upstream.weights.convert.mmdet3 import convert_file, translate_file

    if args.out.endswith('.py'):
        translate_file(args.in_file, args.out)
        print(f'{args.out}: a config of mmdet 2.28, for export, verify and test')
        return 0
    if args.config is None:
        raise UsageError(f'{args.out}: writing a checkpoint needs --config, the config of the model')
    converted = convert_file(args.in_file, args.out, load_config(args.config))
    print(f'{args.out}: {size_of(converted)}, {converted.renamed} renamed')
    for key in converted.left_out:
        print(f'  left out: {key}')
    print(f'use it with {args.config}')
    return 0


def convert_rtdetr(args: argparse.Namespace) -> int:
    from mmdeploy_ext.families.base import load_families
    from mmdeploy_ext.upstream.weights.convert.rtdetr import convert_file

    load_families('')
    cfg = load_config(args.config, shared.parse_cfg_options(args.cfg_options))
    converted = convert_file(args.in_file, args.out, cfg, args.weights)
    print(f'{args.out}: {size_of(converted)}')
    print('\n'.join(f'  {note}' for note in (f'from {converted.origin}', *converted.notes)))
    words = [args.config, *(['--cfg-options', *args.cfg_options] if args.cfg_options else [])]
    print(f'use it with {shlex.join(words)}')
    return 0


def convert_solo(args: argparse.Namespace) -> int:
    from mmdeploy_ext.upstream.weights.convert.solo import convert_file

    converted, config = convert_file(args.in_file, args.out, load_config(args.config))
    print(f'{args.out}: {size_of(converted)}')
    if config is None:
        print(f'use it with {args.config}')
        return 0
    print(f'use it with {config}, which changes in {args.config}:')
    print('\n'.join(f'  {change}' for change in converted.changes))
    return 0


def size_of(converted: Any) -> str:
    """Numbers of tensors and values of a converted checkpoint."""
    numbers = sum(tensor.numel() for tensor in converted.state_dict.values())
    return f'{len(converted.state_dict)} tensors, {numbers / 1e6:.2f} M numbers'


KINDS = {
    'mmdet3': (convert_mmdet3, 'checkpoint or config of mmdet 3, to mmdet 2.28'),
    'rtdetr': (convert_rtdetr, 'checkpoint of lyuwenyu/RT-DETR or RTDetrForObjectDetection'),
    'solo': (convert_solo, 'checkpoint of WXinlong/SOLO, to the names of mmdet 2.28'),
}
"""Name -> converting function, and its subject."""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description='Convert checkpoints of other repositories.')
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')
    for name, (_, title) in KINDS.items():
        sub = kinds.add_parser(name, help=title, description=f'Convert {title}.')
        add = cli.adder(sub)
        is_mmdet3 = name == 'mmdet3'
        add('in_file', 'checkpoint to read' + (', or config to translate' if is_mmdet3 else ''))
        text = 'file to write' + (', a config ends with .py' if is_mmdet3 else '')
        sub.take_output_by_position(cli.add(sub, '--out FILE', text))
        add('--config CONFIG', 'config of mmdet 2.28 of the same model', required=not is_mmdet3)
        if name == 'rtdetr':
            cli.add_fields(sub, ModelRequest, 'cfg_options')
            add(
                '--weights',
                'original files: which weights to read; auto: EMA if present (default: auto)',
                'auto',
                choices=('auto', 'ema', 'model'),
            )
    return parser


def run(args: argparse.Namespace) -> int:
    compat.apply()
    return KINDS[args.kind][0](args)


main = cli.program(run, build_parser)
