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
    add = cli.adder(parser)
    add('--ask m.onnx', 'file, or folder of graphs, that mm2onnx exported', required=True)
    shared.add_model_arguments(parser)
    add('--images --input PATH...', 'samples to record, as for verify')
    add('--frames N', 'largest number of frames, or of sweeps per file (default: 12)', type=int)
    shared.add_normalisation_arguments(parser)
    add('--out FOLDER', 'folder to write', required=True)
    return parser


def run(args: argparse.Namespace) -> int:
    request = ProofRequest(
        args.config,
        args.checkpoint,
        args.ask,
        samples=args.images or (),
        frames=args.frames,
        mean=args.mean,
        std=args.std,
        cfg_options=shared.parse_cfg_options(args.cfg_options),
        device=args.device,
    )
    request.check()
    count = ask_read(read_detector(request, args.ask), request, args.out)
    print(f'{args.out}: {count} inputs. Copy the folder to the environment of the training and run there:')
    print(f'  python {args.out}/record.py {args.config} {args.checkpoint} --inputs {args.out} --out recorded')
    print('Then here:')
    print(f'  mm2onnx verify {args.config} {args.checkpoint} {args.ask} --recorded recorded')
    return 0


main = cli.program(run, build_parser)
