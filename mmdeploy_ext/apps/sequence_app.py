"""Export and proof of models of frames: what `pytorch2onnx.py` and `verify.py` do with them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.apps import proof
from mmdeploy_ext.apps.options import check_engine_kind, refuse_given
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import ConfigError, DataError, UsageError, after_weights

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.runtime.frames import Frame

DEFAULT_FRAMES = 12
PROOF_SCENES = 3
IMAGE_OPTIONS = (
    'input_img',
    'test_img',
    'mean',
    'std',
    'show',
)
"""Arguments of pytorch2onnx.py about pictures."""


def run_export(
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
    engine: dict[str, Any],
    family: Family,
    values: dict[str, Any],
) -> int:
    """Export a model of frames, with a memory or without, and prove it when asked to."""
    from mmdeploy_ext.deploy import deployment as deploy
    from mmdeploy_ext.deploy.sequence_files import check_output, export_sequence

    why = f'family {family.name!r} has no such option; {family.of_config}'
    refuse_given(args, parser, IMAGE_OPTIONS, why)
    options = family.choose(**{'opset': 0, **values})
    options.check(given=values)
    check_engine_kind(engine['engine'], engine.get('inference_precision'))
    output = args.output_file
    if output is None:
        output = f'{Path(args.config).stem}{"_fork.onnx" if options.contract == "fork" else ""}'

    def check(cfg: Any, family: Any, model: Any) -> None:
        nonlocal options
        options = deploy.check_options(options, cfg, family, model)
        check_output(output, options, family.files)

    frames = number_of_frames(args)
    deployment = deploy.load(
        args.config, args.checkpoint, shared.parse_cfg_options(args.cfg_options), args.device, check
    )
    with after_weights():
        paths, seconds = export_sequence(deployment, options, output)
        print(
            f'{output}: {options.contract} contract, {len(paths)} graph(s), opset {options.opset}, '
            f'{options.precision}, exported in {seconds:.1f} s'
        )
        if not args.verify:
            words = [args.config, args.checkpoint, output, *shared.given_words(args)]
            command = ['python', 'tools/deployment/verify.py', *words]
            print(f'NOT PROVEN: nothing was compared. Prove it with\n  {shlex.join(command)}')
            return 0
        return prove(deployment, paths, frames, args, engine)


def run_verify(args: argparse.Namespace, engine: dict[str, Any], cfg: Any) -> int:
    """Prove files of a model of frames that were exported earlier."""
    from mmdeploy_ext.deploy import deployment as deploy
    from mmdeploy_ext.deploy.sequence_files import read_files
    from mmdeploy_ext.evaluate import evaluation
    from mmdeploy_ext.evaluate.detector import FrameDetector
    from mmdeploy_ext.graph.io.files import load
    from mmdeploy_ext.proof.half import precision_of
    from mmdeploy_ext.proof.levels.metrics import compare_metrics
    from mmdeploy_ext.proof.provenance import missing_overrides

    if args.images:
        raise UsageError('--images: streaming models are proven on frames; use --frames N')
    check_engine_kind(engine['engine'], engine.get('inference_precision'))
    files = read_files(args.onnx_file)
    for path in files.paths:
        load(path)  # damaged ones are refused before the weights load
    written = missing_overrides(cfg, files.metadata.options.get('cfg_options', {}))
    cfg_options = {**written, **shared.parse_cfg_options(args.cfg_options)}

    def check(cfg: Any, family: Any, model: object) -> None:
        files.metadata.require(args.onnx_file, family.name)
        if args.eval:
            evaluation.check_tables(cfg, evaluation.build_dataset(cfg))

    frames = number_of_frames(args)
    deployment = deploy.load(args.config, args.checkpoint, cfg_options, args.device, check)
    with after_weights():
        metrics = []
        if args.eval:
            family = deployment.family
            metrics = compare_metrics(
                deployment.cfg,
                FrameDetector(family.reference(deployment.model), family),
                FrameDetector(family.runner(files.paths, engine), family),
                args.eval,
                precision_of(files.metadata),
            )
        return prove(deployment, files.paths, frames, args, engine, metrics, args.edited)


def number_of_frames(args: argparse.Namespace) -> int:
    """Return --frames, or its default.

    Raises:
        UsageError: fewer than two.
    """
    if args.frames is not None and args.frames < 2:
        raise UsageError(f'--frames {args.frames}: expected 2 or more; a memory needs a frame before')
    return args.frames or DEFAULT_FRAMES


def choose_frames(tokens: Sequence[str], count: int) -> list[int]:
    """Return sample indices for a proof: the first frames of the first scenes, so that a memory is emptied.

    Args:
        tokens: scene token of every sample.
        count: frames wanted; spread over `PROOF_SCENES` scenes, or as many as it takes.
    """
    scenes: dict[str, list[int]] = {}
    for index, token in enumerate(tokens):
        scenes.setdefault(token, []).append(index)
    share = max(-(-count // PROOF_SCENES), 2)
    while sum(min(len(scene), share) for scene in scenes.values()) < min(count, len(tokens)):
        share += 1
    return [index for scene in scenes.values() for index in scene[:share]][:count]


def spread(samples: int, count: int) -> list[int]:
    """Return `count` sample indices, or all, evenly over a data set whose samples stand alone."""
    count = min(count, samples)
    return [index * samples // count for index in range(count)]


def proof_frames(deployment: Deployment, count: int) -> tuple[Iterable[Frame], str]:
    """Return frames to prove on, and where they are from: the config's data set, else a synthetic drive."""
    from mmdeploy_ext.evaluate import evaluation
    from mmdeploy_ext.evaluate.loop import DatasetFrames, scene_tokens
    from mmdeploy_ext.proof.inputs.synthetic_drive import synthetic_drive

    try:
        dataset = evaluation.build_dataset(deployment.cfg)
    except (ConfigError, DataError) as error:
        if not deployment.family.memory:
            raise
        rule = deployment.rule
        print(
            f'a synthetic drive of {count} frames is used, since there is no data set: {cli.one_line(error)}'
        )
        return synthetic_drive(count, rule), 'synthetic drive'
    if deployment.family.memory:
        indices = choose_frames(scene_tokens(dataset), count)
    else:
        indices = spread(len(dataset), count)
    title = f'{len(indices)} of {len(dataset)} frames of data.test'
    return DatasetFrames(deployment.family, dataset, indices), title


def prove(
    deployment: Deployment,
    paths: Sequence[str],
    count: int,
    args: argparse.Namespace,
    engine: dict[str, Any],
    metrics: Iterable[Any] = (),
    edited: bool = False,
) -> int:
    """Prove `paths`, write JSON and report, print the table.

    Returns:
        0 proven (float16: within its bars), 1 not.
    """
    from mmdeploy_ext.proof.levels.sequence import prove_sequence
    from mmdeploy_ext.proof.levels.sweeps import prove_sweeps
    from mmdeploy_ext.proof.views.table import print_verdict

    frames, title = proof_frames(deployment, count)
    prove_all = prove_sequence if deployment.family.memory else prove_sweeps
    verdict, pictures = prove_all(deployment, paths, frames, engine, edited=edited)
    verdict.notes.append(f'frames: {title}')
    verdict.metrics.extend(metrics)
    written = proof.write_proof(verdict, pictures, deployment, args)
    print_verdict(verdict, cli.stdout())
    for line in written:
        print(line)
    return 0 if verdict.passed else 1
