"""`mm2onnx kit`: a file, inputs and PyTorch's results in one folder, for the engine that will run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.core import cli

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description="Write a kit: an exported file, inputs, and PyTorch's own results of them. Run the "
        'inputs on the device, then mm2onnx judge.'
    )
    add = cli.adder(parser)
    add('onnx_file m.onnx', 'file that mm2onnx exported')
    shared.add_model_arguments(parser)
    add('--out KIT', 'folder to write; new or empty', required=True, writes='')
    add('--samples PATH...', 'pictures or folders of them (default: demo/toy.jpg)')
    cli.add_debug_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Load the model, write the kit."""
    cli.wait_passively()
    from mmdeploy_ext.api import Source
    from mmdeploy_ext.kit.writer import write_kit
    from mmdeploy_ext.proving.inputs.samples import Samples

    overrides = shared.parse_cfg_options(args.cfg_options)
    source = Source.read(args.config, args.checkpoint, overrides, args.device, file=args.onnx_file)
    deployment = source.load(lambda *_: None, mean=None, std=None)
    samples, _ = Samples(source.family, args.samples or ()).of(deployment)
    manifest = write_kit(deployment, args.onnx_file, samples, args.out)
    print(f"{args.out}: {len(manifest['cases'])} inputs with PyTorch's results; see {args.out}/README.md")
    print(f'next: run them on the device, then mm2onnx judge {args.out} OUTPUTS')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    return cli.run(run, build_parser, argv)
