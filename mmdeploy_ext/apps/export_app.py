"""`pytorch2onnx.py`: export a detector, and prove it with `--verify`."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.apps import proof
from mmdeploy_ext.apps.sequence_options import CHOICES, add_sequence_arguments, refuse_given
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError, after_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.families.base import ExportOptions


DEFAULT_OUTPUT = 'tmp.onnx'
ENGINE_OPTIONS = ('engine', 'providers', 'threads', 'inference_precision')


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; names and meaning are those of mmdet 2.28's pytorch2onnx.py."""
    parser = cli.ArgumentParser(
        description='Export an OpenMMLab 1.x detector to ONNX and prove that it is the same model.'
    )
    shared.add_model_arguments(parser)
    cli.writes(
        parser.add_argument(
            '--output-file',
            help=f'where the graph is written (default: {DEFAULT_OUTPUT}); three graphs go to a folder '
            "(default: the config's name)",
        )
    )
    parser.add_argument('--input-img', help='image that is traced (default: demo/toy.jpg)')
    parser.add_argument(
        '--test-img',
        nargs='+',
        help='images or a folder that --verify adds (default: the mirrored --input-img)',
    )
    parser.add_argument(
        '--opset-version',
        type=int,
        metavar='N',
        help='11 to 20; asked = written, or the export fails (default: 17; 18 for dynamo; 19 with DCN)',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='N',
        help='height and width of the input, or one number for both (default: from the test pipeline)',
    )
    parser.add_argument('--batch-size', type=int, default=1, help='batch of the graph (default: 1)')
    parser.add_argument('--dynamic-export', action='store_true', help='batch, height and width stay dynamic')
    parser.add_argument(
        '--dynamic-batch', action='store_true', help='RT-DETR: the batch stays dynamic, the size is fixed'
    )
    parser.add_argument(
        '--postprocess',
        choices=('full', 'decode', 'raw'),
        help='full: detections (default); decode: boxes, scores, centerness; raw: head outputs',
    )
    parser.add_argument('--skip-postprocess', action='store_true', help='the same as --postprocess raw')
    parser.add_argument(
        '--score-form',
        choices=('separate', 'product'),
        default='separate',
        help='decode form: centerness as an output of its own, or multiplied into the scores',
    )
    parser.add_argument(
        '--layout',
        choices=('batched', 'fork'),
        default='batched',
        help='SOLO, raw form: cells of all levels with a batch axis (default), or exactly the outputs of the '
        'fork zhangjinsong3/SOLOv2.tensorRT',
    )
    parser.add_argument(
        '--max-candidates',
        type=int,
        metavar='K',
        help='SOLO and ATSS, full form: the K best candidates at most, 1 or more, with constant shapes; for '
        'TensorRT (default, without the option: all)',
    )
    parser.add_argument(
        '--fuse',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='RT-DETR: branches of RepVGG blocks become one convolution (default: they do)',
    )
    parser.add_argument(
        '--grid-sample',
        choices=('operator', 'gather'),
        default='operator',
        help='RT-DETR: gather replaces GridSample for engines that get it wrong (TensorRT 10.14 to 11.1)',
    )
    parser.add_argument(
        '--exporter', choices=('torchscript', 'dynamo'), default='torchscript', help='default: torchscript'
    )
    shared.add_normalisation_arguments(parser)
    parser.add_argument(
        '--dataset', help='accepted for old command lines; class names come from the checkpoint or the config'
    )
    parser.add_argument('--simplify', action='store_true', help='run onnxslim over the graph')
    parser.add_argument('--verify', action='store_true', help='prove the file; exit status 1 when it is not')
    parser.add_argument(
        '--show',
        action='store_true',
        help="draw both engines' detections to OUTPUT_FILE.png and print the graph",
    )
    shared.add_precision_arguments(parser)
    add_sequence_arguments(parser)
    shared.add_engine_arguments(parser)
    shared.add_report_arguments(parser)
    cli.add_debug_option(parser)
    return parser


def parse_options(args: argparse.Namespace) -> ExportOptions:
    """Turn arguments into export options; what they contradict is an error.

    Raises:
        UsageError: --skip-postprocess with another form, a --score-form that the form does not have, or a
            number out of range.
    """
    from mmdeploy_ext.exporting.exporter import check_opset
    from mmdeploy_ext.families.base import ExportOptions

    if args.skip_postprocess and args.postprocess not in (None, 'raw'):
        raise UsageError(
            f'--skip-postprocess means --postprocess raw, got --postprocess {args.postprocess} too'
        )
    form = 'raw' if args.skip_postprocess else args.postprocess or 'full'
    if args.dynamic_export and args.dynamic_batch:
        raise UsageError('--dynamic-batch fixes height and width, --dynamic-export does not: choose one')
    if args.score_form != 'separate' and form != 'decode':
        raise UsageError(f'--score-form {args.score_form} goes with --postprocess decode, got {form}')
    if args.opset_version is not None:
        check_opset(args.opset_version, args.exporter)
    if args.max_candidates is not None and args.max_candidates < 1:
        raise UsageError(
            f'--max-candidates {args.max_candidates}: expected a positive number; leave it out for all'
        )
    shared.check_normalisation(args)
    height, width = shared.parse_shape(args.shape)
    return ExportOptions(
        form=form,
        opset=args.opset_version or 0,
        height=height,
        width=width,
        batch=args.batch_size,
        dynamic=args.dynamic_export,
        exporter=args.exporter,
        score_form=args.score_form,
        simplify=args.simplify,
        **shared.precision_options(args),
        layout=args.layout,
        max_candidates=args.max_candidates or 0,
        fuse=args.fuse,
        grid_sample=args.grid_sample,
        dynamic_batch=args.dynamic_batch,
    )


def run(args: argparse.Namespace, register: Callable[[], None], only: str = '') -> int:
    """Export, and prove when asked to; `only` names the one family that the tool is for."""
    cli.wait_passively()
    from mmdeploy_ext.stack import compat

    compat.apply()
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.core.files import will_write
    from mmdeploy_ext.deploy import deployment as deploy
    from mmdeploy_ext.families.base import DETECTOR, find_family

    engine = shared.engine_options(args)
    cfg_options = shared.parse_cfg_options(args.cfg_options)
    proof.check_report_targets(args)
    for name in ('report', 'json', 'frames'):
        if getattr(args, name) is not None and not args.verify:
            raise UsageError(f'--{name} {getattr(args, name)}: goes with --verify')
    if not args.verify and not args.show:
        refuse_given(
            args, build_parser(), ENGINE_OPTIONS, 'goes with --verify; the export itself runs no engine'
        )
    register()
    family = find_family(load_config(args.config, cfg_options), DETECTOR)
    if only and family.name != only:
        raise UsageError(
            f'{args.config}: is a config of family {family.name!r}, expected {only!r}; '
            f'use tools/deployment/pytorch2onnx.py for it'
        )
    if family.samples != 'images':
        from mmdeploy_ext.apps.sequence_app import run_export

        return run_export(args, build_parser(), engine, family.memory)
    args.output_file = args.output_file or DEFAULT_OUTPUT
    will_write('--output-file', [args.output_file])
    if args.show:
        will_write('--show', [f'{args.output_file}.png'])
    options = parse_options(args)
    refuse_given(args, build_parser(), (*CHOICES, 'frames'), 'goes with streaming models only')
    images = proof.read_images([args.input_img or proof.DEFAULT_IMAGE], 1) + proof.read_images(
        args.test_img or []
    )
    deployment = deploy.load(
        args.config, args.checkpoint, cfg_options, args.device, deploy.option_check(options, args.output_file)
    )
    with after_weights():
        return export_and_prove(deployment, options, images, args, engine)


def export_and_prove(
    deployment: Deployment,
    options: ExportOptions,
    images: list[tuple[str, np.ndarray]],
    args: argparse.Namespace,
    engine: dict[str, Any],
) -> int:
    """Write the file, say what it is, and prove it when asked to.

    Returns:
        The exit status.
    """
    from mmdeploy_ext.deploy import deployment as deploy

    deployment.rule = deploy.with_normalisation(deployment.rule, args.mean, args.std)
    options = deploy.resolve(options, deployment.model, deployment.rule)
    traced = deploy.prepare_fixed(deployment.rule, images[0][1], options.height, options.width)
    metadata, seconds = deploy.export_to_file(deployment, options, [traced], args.output_file)
    print(
        f'{args.output_file}: {metadata.spec.name}, opset {options.opset}, {options.precision}, '
        f'{_shape_title(options)}, exported in {seconds:.1f} s'
    )
    if args.show:
        _show(deployment, args.output_file, images[0], engine)
    if not args.verify:
        words = [args.config, args.checkpoint, args.output_file, *shared.given_words(args)]
        command = ['python', 'tools/deployment/verify.py', *words]
        print(f'NOT PROVEN: nothing was compared. Prove it with\n  {shlex.join(command)}', file=sys.stdout)
        return 0
    return proof.run_proof(deployment, args.output_file, images, args, engine)


def _shape_title(options: ExportOptions) -> str:
    if options.dynamic:
        return 'dynamic batch and size'
    return 'dynamic batch, fixed size' if options.dynamic_batch else 'fixed shape'


def _show(
    deployment: Deployment, path: str, image: tuple[str, np.ndarray], engine: Mapping[str, Any]
) -> None:
    """Print the graph and draw both engines' detections beside the file."""
    import onnx
    import onnx.printer

    from mmdeploy_ext.core.files import atomic_path
    from mmdeploy_ext.engines import build_backend
    from mmdeploy_ext.proof.ladder import export_options, open_file
    from mmdeploy_ext.proof.levels.cases import run_case
    from mmdeploy_ext.proof.references import references
    from mmdeploy_ext.proof.tasks import task_module
    from mmdeploy_ext.runtime.draw import encode_png

    model, metadata = open_file(path)
    shown = onnx.GraphProto()
    shown.CopyFrom(model.graph)
    shown.ClearField('initializer')  # their values would fill the screen
    print(onnx.printer.to_text(shown))
    options = dict(engine)
    with build_backend(options.pop('engine'), path, **options) as backend:
        traced = references(deployment, export_options(metadata), [image])[0]
        _, pairs = run_case(traced, backend)
    task = task_module(deployment.family.task)
    for pair in pairs[:1]:
        picture = f'{path}.png'
        with atomic_path(picture) as temporary:
            temporary.write_bytes(encode_png(task.draw_pair(task.fit_pair(pair), deployment.classes)))
        print(f'detections side by side: {picture}')


def main(register: Callable[[], None], argv: Sequence[str] | None = None, only: str = '') -> int:
    """Run the tool.

    Args:
        register: imports the projects whose families can be exported.
        argv: command line; None reads sys.argv.
        only: the one family that the tool takes; '' takes all.

    Returns:
        0 exported (and proven when asked), 1 checked and failed, 2 usage.
    """
    return cli.run(lambda args: run(args, register, only), build_parser(), argv)
