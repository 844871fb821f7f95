"""`verify.py`: prove a file that was made earlier; its metadata says what it claims to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.apps import proof
from mmdeploy_ext.apps.options import add_frames_argument, refuse_given
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import after_weights

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.families.base import ImageFamily


IMAGE_ASKED = ('mean', 'std', 'postprocess', 'opset_version', 'max_candidates')
"""Options of single pictures alone."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Prove that an exported ONNX file is the model of CONFIG and CHECKPOINT: '
        'exit status 0 proven, 1 not, 2 usage.'
    )
    shared.add_model_arguments(parser)
    parser.add_argument(
        'onnx_file', metavar='m.onnx', help='file, or folder of graphs, that mm2onnx exported'
    )
    parser.add_argument(
        '--images',
        nargs='+',
        metavar='PATH',
        help='images or folders to compare on, dynamic files at the size that the rule of the config gives '
        'each; views of the first are the other inputs (default: demo/toy.jpg)',
    )
    parser.add_argument(
        '--eval', nargs='+', metavar='METRIC', help='also compare data-set metrics by both engines, e.g. bbox'
    )
    parser.add_argument(
        '--edited',
        action='store_true',
        help='the file was edited on purpose: inputs alone decide, its graph is not compared',
    )
    _add_asked(parser)
    add_frames_argument(parser)
    shared.add_engine_arguments(parser)
    shared.add_report_arguments(parser)
    cli.add_debug_option(parser)
    return parser


def _add_asked(parser: argparse.ArgumentParser) -> None:
    """Add what the export was asked for; the config says what is not given here."""
    group = parser.add_argument_group(
        'what the export was asked for', 'as at the export; a file that says something else is not proven'
    )
    shared.add_normalisation_arguments(group)
    group.add_argument(
        '--postprocess', metavar='FORM', help='full, decode or raw (default: what the file says)'
    )
    group.add_argument('--opset-version', type=int, metavar='N', help='opset (default: what the file says)')
    group.add_argument(
        '--max-candidates', type=int, metavar='K', help='candidates, 0 for all (default: what the file says)'
    )


def asked_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the export that were given on the command line."""
    given = dict(form=args.postprocess, opset=args.opset_version, max_candidates=args.max_candidates)
    return {name: value for name, value in given.items() if value is not None}


def run(args: argparse.Namespace, register: Callable[[], None]) -> int:
    """Load both sides and run the ladder."""
    cli.wait_passively()
    from mmdeploy_ext.stack import compat

    compat.apply()
    from mmdeploy_ext.contract.metadata import read_metadata
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.deploy import deployment as deploy
    from mmdeploy_ext.evaluate import evaluation
    from mmdeploy_ext.families.base import DETECTOR, find_family
    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.proof.provenance import missing_overrides

    shared.check_normalisation(args)
    engine = shared.engine_options(args)
    proof.check_report_targets(args)
    register()
    given = shared.parse_cfg_options(args.cfg_options)
    cfg = load_config(args.config, given)
    if find_family(cfg, DETECTOR).samples != 'images':
        from mmdeploy_ext.apps.sequence_app import run_verify

        refuse_given(args, build_parser(), IMAGE_ASKED, 'goes with models of single pictures only')
        return run_verify(args, engine, cfg)
    refuse_given(args, build_parser(), ('frames',), 'goes with streaming models only')
    metadata = read_metadata(args.onnx_file)
    files.load(args.onnx_file)  # damaged ones are refused before the weights load
    images = proof.read_images(args.images or [proof.DEFAULT_IMAGE])
    cfg_options = {**missing_overrides(cfg, metadata.options.get('cfg_options', {})), **given}

    def check(cfg: Any, family: ImageFamily, model: object) -> None:
        metadata.require(args.onnx_file, family.name, family.forms)
        if args.eval:
            evaluation.build_dataset(cfg)

    deployment = deploy.load(args.config, args.checkpoint, cfg_options, args.device, check)
    deployment.rule = deploy.with_normalisation(deployment.rule, args.mean, args.std)
    metrics = []
    with after_weights():
        if args.eval:
            metrics = _compare_metrics(deployment, args, engine)
        return proof.run_proof(
            deployment,
            args.onnx_file,
            images,
            args,
            engine,
            metrics,
            edited=args.edited,
            asked=asked_of(args),
        )


def _compare_metrics(deployment: Deployment, args: argparse.Namespace, engine: dict[str, Any]) -> list[Any]:
    """Evaluate the config's test set by both engines."""
    from mmdeploy_ext.engines import build_backend
    from mmdeploy_ext.evaluate.detector import BackendDetector, PublishedDetector
    from mmdeploy_ext.proof.half import precision_of
    from mmdeploy_ext.proof.levels.metrics import compare_metrics

    named = {'kind' if key == 'engine' else key: value for key, value in engine.items()}
    with build_backend(path=args.onnx_file, **named) as backend:
        return compare_metrics(
            deployment.cfg,
            PublishedDetector(deployment.model),
            BackendDetector(backend, deployment.family, backend.metadata),
            args.eval,
            precision_of(backend.metadata, backend.computes_in),
        )


def main(register: Callable[[], None], argv: Sequence[str] | None = None) -> int:
    """Run the tool; see `export_app.main`."""
    return cli.run(lambda args: run(args, register), build_parser(), argv)
