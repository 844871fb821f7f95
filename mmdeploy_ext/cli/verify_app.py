"""`verify.py`: prove files that were made earlier; their metadata says what they claim to be."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext import compat
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.cli import proof
from mmdeploy_ext.contract.options import FORM, MAX_CANDIDATES, MAX_PROPOSALS, OPSET
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import LoadError, after_weights
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families.base import BACKBONE, Family

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.proving.results import MetricRow


ASKED = tuple(
    dataclasses.replace(one, help=f'{one.help.split(" (default")[0]} (default: what the file says)', group='')
    for one in (FORM, OPSET, MAX_CANDIDATES, MAX_PROPOSALS)
)
"""Options of the export that a proof may be told again."""
IMAGE_ASKED = ('mean', 'std', *(one.name for one in ASKED))
"""Options of single pictures alone."""
DETECTOR_ASKED = ('eval', 'engine', 'providers', 'inference_precision', 'device')
"""Options that sparse backbones do not have."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Prove that an exported ONNX file is the model of CONFIG and CHECKPOINT: '
        'exit status 0 proven, 1 not, 2 usage.'
    )
    shared.add_model_arguments(parser)
    add = cli.adder(parser)
    add('onnx_file m.onnx', 'file, or folder of graphs, that mm2onnx exported')
    add(
        '--images --input PATH...',
        'samples to compare on. Images or folders: dynamic files get them at the size that the rule of '
        'the config gives each, views of the first are the other inputs (default: demo/toy.jpg). LiDAR: '
        'sweeps (.bin, .npy; of sparse backbones voxels in .npz too), folders of them, or info files (.pkl). '
        'Models with a memory: an info file (.pkl)',
    )
    add('--eval METRIC...', 'also compare data-set metrics by both engines, e.g. bbox')
    add('--edited', 'the file was edited on purpose: inputs alone decide, its graph is not compared')
    group = parser.add_argument_group(
        'what the export was asked for',
        'as at the export, 0 for all candidates; a file that says something else is not proven',
    )
    shared.add_normalisation_arguments(group)
    shared.add_declared(group, ASKED)
    shared.add_proof_arguments(parser)
    shared.add_report_arguments(parser)
    cli.add_debug_option(parser)
    return parser


def run(args: argparse.Namespace, register: Callable[[], None]) -> int:
    """Load both sides and run the ladder."""
    cli.wait_passively()
    compat.apply()

    shared.check_normalisation(args)
    engine = shared.engine_options(args)
    proof.check_report_targets(args)
    register()
    cfg = load_config(args.config, shared.parse_cfg_options(args.cfg_options))
    family = proof.family_of(cfg, args.onnx_file)
    refuse_others(args, family, engine)
    samples = proof.Samples(family, args.images or (), args.frames)
    asked = shared.given_values(args, ASKED)
    return prove_files(args, cfg, family, samples, engine, asked=asked)


def refuse_others(args: argparse.Namespace, family: Family, engine: dict[str, Any]) -> None:
    """Refuse options that this kind of model does not have."""
    if family.samples == 'images':
        shared.refuse_given(args, build_parser(), ('frames',), 'goes with streaming models only')
        return
    shared.refuse_given(args, build_parser(), IMAGE_ASKED, 'goes with models of single pictures only')
    if family.product == BACKBONE:
        shared.refuse_given(args, build_parser(), DETECTOR_ASKED, 'sparse backbones do not have it')
    shared.check_engine_kind(engine['engine'], engine.get('inference_precision'))


def prove_files(
    args: argparse.Namespace,
    cfg: Any,
    family: Family,
    samples: proof.Samples,
    engine: dict[str, Any],
    weight_layout: str = 'auto',
    **claims: Any,
) -> int:
    """Prove files that were exported earlier; their metadata say with which options.

    Args:
        args: of the command line.
        cfg: the config, with the overrides of the command line.
        family: of the files.
        samples: to run them on.
        engine: options of `build_backend`.
        weight_layout: see `Family.load`.
        claims: see `ladder.prove`.
    """
    from mmdeploy_ext.evaluate import evaluation
    from mmdeploy_ext.exporting import deployment as deploy

    paths, metadata = _read(family, args.onnx_file)
    cfg_options = shared.parse_cfg_options(args.cfg_options)

    def check(cfg: Any, family: Family, model: object) -> None:
        if metadata is not None:
            metadata.require(args.onnx_file, family.name, getattr(family, 'forms', ()))
        if args.eval:
            evaluation.check_tables(cfg, evaluation.build_dataset(cfg))

    kind = family.product, weight_layout
    deployment = deploy.load(args.config, args.checkpoint, cfg_options, args.device, check, *kind)
    deployment.normalise_with(args.mean, args.std)
    found = samples.of(deployment)
    with after_weights():
        metrics = []
        with contextlib.suppress(LoadError):  # the proof says it
            metrics = _metrics(deployment, paths, metadata, args.eval, engine) if args.eval else []
        claims['edited'] = args.edited
        if family.samples == 'images':
            claims['picture_files'] = samples.files
        return proof.run_proof(deployment, paths, found, args, engine, metrics, **claims)


def _read(family: Family, path: str) -> tuple[list[str], Metadata | None]:
    """Return the files, and the metadata of the last: None for backbones, which keep less of it.

    What is damaged is refused now, not after the weights have loaded.
    """
    from mmdeploy_ext.exporting.files import read_files
    from mmdeploy_ext.graph.io.files import load, read
    from mmdeploy_ext.proving.levels.sparse_subject import file_options

    if family.product == BACKBONE:
        file_options(read(path), path)
        return [path], None
    files = read_files(path)
    for file in files.paths:
        load(file)
    return files.paths, files.metadata


def _metrics(
    deployment: Deployment,
    paths: Sequence[str],
    metadata: Metadata,
    metrics: Sequence[str],
    engine: dict[str, Any],
) -> list[MetricRow]:
    """Evaluate the config's test set by both engines."""
    from mmdeploy_ext.evaluate.detector import BackendDetector, FrameDetector, PublishedDetector
    from mmdeploy_ext.proving.levels.metrics import compare_metrics

    family = deployment.family
    if family.samples != 'images':
        networks = (family.reference(deployment.model), family.runner(paths, engine))
        detectors = (FrameDetector(network, family) for network in networks)
        return compare_metrics(deployment.cfg, *detectors, metrics, metadata.precision)
    named = {'kind' if key == 'engine' else key: value for key, value in engine.items()}
    with build_backend(path=paths[0], **named) as backend:
        detectors = PublishedDetector(deployment.model), BackendDetector(backend, family, metadata)
        precision = backend.computes_in or metadata.precision
        return compare_metrics(deployment.cfg, *detectors, metrics, precision)


def main(register: Callable[[], None], argv: Sequence[str] | None = None) -> int:
    """Run the tool; see `export_app.main`."""
    return cli.run(lambda args: run(args, register), build_parser(), argv)
