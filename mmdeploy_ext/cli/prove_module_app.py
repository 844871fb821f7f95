"""`mm2onnx prove-module`: prove any ONNX file against any PyTorch module, see docs/any-module.md."""

from __future__ import annotations

import argparse

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.proving.subject import ModuleRequest


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description='Prove that an ONNX file computes what a PyTorch module computes. Exit status: 0 '
        'proven, 1 not proven, 2 usage. Works with any ONNX file and any module.'
    )
    cli.add_fields(parser, ModuleRequest, 'module path')
    add = cli.adder(parser)
    add(
        '--samples FILE.py:samples',
        'function without arguments that yields samples: tuples of arguments, or dicts by name',
    )
    cli.add_fields(parser, ModuleRequest, f'{shared.OF_MODULES} fresh')
    add('--json FILE', 'write the verdict as JSON')
    return parser


def run(args: argparse.Namespace) -> int:
    cli.wait_passively()
    if not args.inputs and not args.samples:
        raise UsageError('--inputs or --samples: pass samples to compare on')
    state = shared.parse_state(args.state)

    from mmdeploy_ext.base.files import write_json
    from mmdeploy_ext.proving.modules import make_module, make_samples, prove_module, read_samples
    from mmdeploy_ext.proving.views.table import print_verdict
    from mmdeploy_ext.upstream import compat

    compat.apply()  # patches mmcv and others as they are imported, which the file of the user may do
    samples = read_samples(args.inputs or ())
    module = make_module(args.module)
    if args.samples:
        samples += make_samples(args.samples)
    given = dict(cli.given_of(ModuleRequest, args), module=module, inputs=samples, state=state)
    verdict = prove_module(**given)
    if args.json:
        write_json(args.json, verdict.to_json())
    print_verdict(verdict, cli.stdout())
    return 0 if verdict.proven else 1


main = cli.program(run, build_parser)
