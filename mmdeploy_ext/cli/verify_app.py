"""`verify.py`: prove files that were exported earlier, by what their metadata states."""

from __future__ import annotations

import argparse
import dataclasses

from mmdeploy_ext.api import ProofRequest, prove_read, read_detector
from mmdeploy_ext.base import cli
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.cli import parts_app, proof
from mmdeploy_ext.spec.options import FORM, MAX_CANDIDATES, MAX_PROPOSALS, OPSET
from mmdeploy_ext.spec.registry import detector_options

EXPORT_OPTIONS = tuple(
    dataclasses.replace(
        option, help=f'{option.help.split(" (default")[0]} (default: as in the file)', group=''
    )
    for option in (FORM, OPSET, MAX_CANDIDATES, MAX_PROPOSALS)
)
"""Options of the export that may be repeated for a proof."""


DESCRIPTIONS = {
    shared.DETECTOR: 'Prove that an exported ONNX file equals the model of CONFIG and CHECKPOINT. Exit '
    'status: 0 proven, 1 not proven, 2 usage.',
    shared.PARTS: 'Prove a folder of `mm2onnx export --parts`: exit status 0 proven, 1 not, 2 usage.',
}


def build_parser(subject: str = shared.DETECTOR) -> cli.ArgumentParser:
    parser = shared.parser_of(subject, DESCRIPTIONS, build_parser)
    cli.add_fields(parser, ProofRequest, f'{shared.MODEL} onnx_file')
    if subject == shared.PARTS:
        parts_app.add_samples(parser)
        cli.add(parser, '--json FILE', 'write the verdict as JSON')
        return parser
    cli.add_fields(parser, ProofRequest, 'samples metrics recorded edited')
    group = parser.add_argument_group(
        'options of the export',
        "must equal the file's (0: all candidates)",
    )
    cli.add_fields(group, ProofRequest, 'mean std')
    shared.add_declared(group, EXPORT_OPTIONS)
    cli.add_fields(parser, ProofRequest, f'ignored_keys {shared.ENGINE} library')
    shared.add_report_arguments(parser)
    reason = 'is an option of export; omit it, since verify uses the value in the file'
    parser.elsewhere = {option.typed: reason for option in detector_options()}
    return parser


def run(args: argparse.Namespace) -> int:
    shared.take_file_first(args)
    if args.subject == shared.PARTS:
        return parts_app.run_verify(args)
    cli.wait_passively()
    asked = shared.option_values(args, EXPORT_OPTIONS)
    request = shared.request_of(ProofRequest, args, asked=asked)
    request.check()
    proof.check_report_targets(args)
    detector = read_detector(request)
    family, of_family = detector.family, {option.name for option in detector.family.options}
    foreign = [option.name for option in EXPORT_OPTIONS if option.name not in of_family]
    shared.refuse_options(args, build_parser(), foreign, f'family {family.name!r} has no such option')
    verdict = prove_read(detector, request)
    kind = kind_of(detector.family)
    if not verdict.passed:
        from mmdeploy_ext.proving.difference import difference_lines

        files, _ = kind.read(str(args.onnx_file))
        images = kind.images_of_difference(detector, kind.public_samples)
        with cli.progress('looking for the first difference'):
            verdict.notes += difference_lines(detector, files, images, verdict)
    return proof.show(verdict, detector, args)


chosen_by = parts_app.chosen_by
main = shared.program(run, build_parser, chosen_by)
