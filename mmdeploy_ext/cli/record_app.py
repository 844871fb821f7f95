"""`record.py`: write what goes to the environment of the training, see docs/recorded.md."""

from __future__ import annotations

import argparse

from mmdeploy_ext.api import ProofRequest, ask_read, read_detector
from mmdeploy_ext.base import cli
from mmdeploy_ext.cli import options as shared


def build_parser() -> cli.ArgumentParser:
    parser = cli.ArgumentParser(
        description='Write the inputs of a proof and record.py, which runs them in the environment of the '
        'training. It does not need mm2onnx there.'
    )
    cli.add(
        parser,
        '--ask m.onnx',
        'exported file or folder of graphs',
        dest='onnx_file',
        required=True,
    )
    cli.add_fields(parser, ProofRequest, f'{shared.MODEL} samples frames mean std')
    cli.add(parser, '--out FOLDER', 'folder to write', required=True, writes='')
    return parser


def run(args: argparse.Namespace) -> int:
    request = shared.request_of(ProofRequest, args)
    request.check()
    count = ask_read(read_detector(request), request, args.out)
    print(f'{args.out}: {count} inputs. Copy the folder to the environment of the training and run there:')
    print(f'  python {args.out}/record.py {args.config} {args.checkpoint} --inputs {args.out} --out recorded')
    print('Then here:')
    print(f'  mm2onnx verify {args.config} {args.checkpoint} {args.onnx_file} --recorded recorded')
    return 0


main = cli.program(run, build_parser)
