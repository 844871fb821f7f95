"""`verify.py`: prove files that were exported earlier, by what their metadata states."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from mmdeploy_ext.api import ProofRequest, prove_read, read_detector
from mmdeploy_ext.base import cli
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.cli import parts_app, proof
from mmdeploy_ext.families.base import Family
from mmdeploy_ext.spec.options import FORM, MAX_CANDIDATES, MAX_PROPOSALS, OPSET
from mmdeploy_ext.spec.registry import detector_options

EXPORT_OPTIONS = tuple(
    dataclasses.replace(
        option, help=f'{option.help.split(" (default")[0]} (default: as in the file)', group=''
    )
    for option in (FORM, OPSET, MAX_CANDIDATES, MAX_PROPOSALS)
)
"""Options of the export that may be repeated for a proof."""


def build_parser(chosen: str = shared.DETECTOR) -> cli.ArgumentParser:
    return shared.parser_of(VARIANTS, chosen)


def add_arguments(parser: cli.ArgumentParser) -> None:
    shared.add_model_arguments(parser)
    add = cli.adder(parser)
    add('onnx_file m.onnx', 'file, or folder of graphs, that mm2onnx exported')
    add(
        '--images --input PATH...',
        'samples to compare on: images or folders (default: demo/toy.jpg and, if present, 3 of '
        'data.test); LiDAR sweeps (.bin, .npy; for sparse backbones also voxels, .npz), folders of them '
        'or info files (.pkl); for models with a memory, an info file (.pkl)',
    )
    add('--eval METRIC...', "also compare the data set's metrics of both engines, e.g. bbox")
    add(
        '--recorded FOLDER',
        'compare with the results of record.py in the environment of the training (mm2onnx record)',
        '',
    )
    add('--edited', 'the file was edited on purpose: compare only its results, not the graph')
    group = parser.add_argument_group(
        'options of the export',
        "must equal the file's (0: all candidates)",
    )
    shared.add_normalisation_arguments(group)
    shared.add_declared(group, EXPORT_OPTIONS)
    shared.add_ignored_keys(parser)
    shared.add_proof_arguments(parser)
    shared.add_library_argument(parser)
    shared.add_report_arguments(parser)
    reason = 'is an option of export; omit it, since verify uses the value in the file'
    parser.elsewhere = {option.typed: reason for option in detector_options()}


def run(args: argparse.Namespace) -> int:
    cli.wait_passively()
    request = ProofRequest(
        args.config,
        args.checkpoint,
        args.onnx_file,
        samples=args.images or (),
        frames=args.frames,
        mean=args.mean,
        std=args.std,
        cfg_options=shared.parse_cfg_options(args.cfg_options),
        device=args.device,
        engine=args.engine,
        providers=args.providers,
        threads=args.threads,
        inference_precision=args.inference_precision,
        metrics=args.eval or (),
        edited=args.edited,
        asked=shared.option_values(args, EXPORT_OPTIONS),
        library=args.library,
        strict=args.strict,
        ignored_keys=args.ignore_keys or (),
        recorded=args.recorded,
    )
    request.check()
    proof.check_report_targets(args)
    detector = read_detector(request, args.onnx_file)
    check_family(args, detector.family)
    verdict = prove_read(detector, request)
    kind = kind_of(detector.family)
    if Path(args.onnx_file).is_file() and kind.public_samples:
        from mmdeploy_ext.proving.difference.locate import near_lines

        side = kind.side_of_difference(detector, kind.public_samples)
        verdict.notes += near_lines(detector, args.onnx_file, side, verdict)
    return proof.show(verdict, detector, args)


def check_family(args: argparse.Namespace, family: Family) -> None:
    """Raise UsageError for options that do not go with a family."""
    parser, of_family = build_parser(), {option.name for option in family.options}
    foreign = [option.name for option in EXPORT_OPTIONS if option.name not in of_family]
    shared.refuse_options(args, parser, foreign, f'family {family.name!r} has no such option')
    shared.refuse_of_kind(args, parser, 'verify', family)


VARIANTS = {
    shared.DETECTOR: shared.Variant(
        'Prove that an exported ONNX file equals the model of CONFIG and CHECKPOINT. Exit status: 0 '
        'proven, 1 not proven, 2 usage.',
        add_arguments,
        run,
    ),
    shared.PARTS: parts_app.VERIFY,
}


chosen_by = parts_app.chosen_by
main = shared.program_of(VARIANTS, chosen_by)
