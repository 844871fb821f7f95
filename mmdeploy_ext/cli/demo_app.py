"""`mm2onnx demo`: a small trained ATSS is exported, proven and drawn, by the commands of any model."""

from __future__ import annotations

import importlib.metadata
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.commands import CHECKOUT
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE

if TYPE_CHECKING:
    import argparse

CONFIG, CHECKPOINT = 'configs/demo/atss_toy.py', 'demo/checkpoints/atss_toy.pth'


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description='Export a small trained ATSS (1.1 million parameters, six kinds of shapes), prove the '
        "file against PyTorch and draw what it finds on this package's picture. Prints the commands."
    )
    cli.add(
        parser,
        '--out FOLDER',
        'folder of the file and the picture (default: mm2onnx_demo)',
        Path('mm2onnx_demo'),
    )
    return parser


def toy_root() -> Path:
    """Folder above `configs/` and `demo/`: the checkout, or where the wheel put the toy's files."""
    if (CHECKOUT / CONFIG).is_file():
        return CHECKOUT
    for file in importlib.metadata.files('mm2onnx') or ():
        if file.as_posix().endswith(f'/share/mm2onnx/{CONFIG}') and Path(file.locate()).is_file():
            return Path(file.locate()).resolve().parents[2]
    raise UsageError(f'{CONFIG}: is not in this installation; install the wheel again, or use a clone')


def run(args: argparse.Namespace) -> int:
    from mmdeploy_ext.cli import command

    root, model, drawn = toy_root(), args.out / 'atss_toy.onnx', args.out / 'detections.jpg'
    config, checkpoint = str(root / CONFIG), str(root / CHECKPOINT)
    for words in (
        ['export', config, checkpoint, '--out', str(model), '--dynamic-export', '--verify'],
        ['run', str(model), str(DEFAULT_PICTURE), '--out', str(drawn)],
    ):
        print(f'$ mm2onnx {shlex.join(words)}', flush=True)
        if status := command.main(words):
            return status
    print('your model: mm2onnx export CONFIG CHECKPOINT --out m.onnx --verify')
    return 0


main = cli.program(run, build_parser)
