"""Levels 1 to 3 of the ladder: one file against the unpatched PyTorch model, on inputs that it never saw."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from rich.progress import Progress

from mmdeploy_ext.contract.metadata import Metadata, read_metadata
from mmdeploy_ext.core.cli import stderr
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.deploy import deployment as deploy
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.exporting import export
from mmdeploy_ext.proof import fresh, half
from mmdeploy_ext.proof.enough import whole_reasons
from mmdeploy_ext.proof.inputs.inputs import proof_inputs
from mmdeploy_ext.proof.levels.cases import run_case, timing
from mmdeploy_ext.proof.levels.graph_level import judge
from mmdeploy_ext.proof.levels.structure import check_structure
from mmdeploy_ext.proof.provenance import (
    asked_checks,
    hash_checks,
    hashes_of,
    normalisation_notes,
    override_notes,
    provenance,
)
from mmdeploy_ext.proof.references import Reference
from mmdeploy_ext.proof.subject import data_hashes
from mmdeploy_ext.proof.verdict import PicturePair, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.deploy.deployment import Deployment

MAX_PICTURES = 8


def open_file(path: str) -> tuple[onnx.ModelProto, Metadata]:
    """Read an ONNX file and what it says about itself.

    Raises:
        ModelFileError: missing, corrupt, weights cut short or not there, or not written by mm2onnx.
    """
    from mmdeploy_ext.graph.io import files

    metadata = read_metadata(path)
    return files.load(path), metadata


def prove(
    deployment: Deployment,
    path: str,
    images: Sequence[tuple[str, np.ndarray]],
    engine: str = 'OnnxRuntimeBackend',
    edited: bool = False,
    asked: Mapping[str, Any] | None = None,
    **engine_options: Any,
) -> tuple[Verdict, list[PicturePair]]:
    """Prove one file.

    Args:
        deployment: the config and checkpoint that it claims to be.
        path: the ONNX file.
        images: (title, BGR picture); the first is taken as the traced one.
        engine: registered backend name.
        edited: the file was edited on purpose: inputs alone decide about its graph.
        asked: what the export was asked for, where it was said: 'form', or an option of the export.
        engine_options: options of the backend.

    Returns:
        The verdict, and pictures for the report.
    """
    verdict, metadata = check_file(deployment, path, images[0][1], engine, edited)
    verdict.structure += asked_checks(metadata.options, asked or {})
    pictures: list[PicturePair] = []
    engine_options = half.proof_engine(metadata, engine, engine_options)
    inputs = proof_inputs(deployment, deployment.family.written(metadata.options, path), images)
    console, first = stderr(), None
    with (
        build_backend(engine, path, **engine_options) as backend,
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        verdict.subject['precision'] = half.precision_of(metadata, backend.computes_in)
        task = bar.add_task('proving', total=len(inputs))
        for proof_input in inputs:
            reference = Reference(deployment, proof_input)
            first = first or reference
            cases, pairs = run_case(reference, backend)
            reference.forget()
            verdict.cases.extend(cases)
            pictures.extend(pairs)
            bar.advance(task)
        if verdict.precision != 'fp32':
            half.judge_whole(verdict, bool(engine_options.get('round_fp16')))
        if all(case.passed for case in verdict.cases):
            verdict.timing_ms = timing(first, backend)
    _judge_whole(verdict, deployment, metadata)
    return verdict, pictures[:MAX_PICTURES]


def check_file(
    deployment: Deployment,
    path: str,
    image_bgr: np.ndarray,
    engine: str = 'OnnxRuntimeBackend',
    edited: bool = False,
) -> tuple[Verdict, Metadata]:
    """Return level 1 of one file as the beginning of a verdict, and what the file says of itself.

    Args:
        deployment: the config and checkpoint that it claims to be.
        path: the ONNX file.
        image_bgr: what a fresh export traces.
        engine: registered backend name, for the subject.
        edited: see `prove`.
    """
    model, metadata = open_file(path)
    if metadata.family != deployment.family.name:
        raise ModelFileError(
            f'{path}: is a model of family {metadata.family!r}; {deployment.config} is '
            f'{deployment.family.name!r}'
        )
    metadata.require(path, deployment.family.name, deployment.family.forms)
    options = deployment.family.written(metadata.options, path)
    if options.form != metadata.form:
        raise ModelFileError(
            f'{path}: says that its form is {metadata.form!r} and that it was exported as {options.form!r}; '
            f'export it again'
        )
    with fresh.options_of(path):
        deploy.check_options(options, deployment.cfg, deployment.family, deployment.model)
    reference = fresh.of_images(deployment, options, metadata, image_bgr)
    graph = judge(model, metadata, reference, edited=edited)
    hashes, notes = hash_checks(deployment, hashes_of(metadata), graph.equal)
    contract = deploy.make_metadata(deployment, options).spec
    rule = deploy.rule_of(deployment, options)
    checks = [*check_structure(model, metadata), *hashes, *provenance(deployment, metadata, rule, contract)]
    subject = _subject(deployment, path, metadata, engine)
    return Verdict(subject, checks, notes=notes, graphs=[graph]), metadata


def _subject(deployment: Deployment, path: str, metadata: Metadata, engine: str) -> dict[str, Any]:
    return dict(
        file=str(path),
        file_sha256=sha256_file(path),
        **data_hashes([path]),
        family=metadata.family,
        task=deployment.family.task,
        options=metadata.options,
        form=metadata.form,
        opset=metadata.options['opset'],
        exporter=metadata.options['exporter'],
        shape=_shape_title(metadata.options),
        engine=engine,
        config=deployment.config,
        checkpoint=deployment.checkpoint,
        config_sha256=deployment.config_sha256,
        checkpoint_sha256=deployment.checkpoint_sha256,
        exported_with=metadata.versions,
        proven_with=export.versions(),
        python=platform.python_version(),
    )


def _shape_title(options: Mapping[str, Any]) -> str:
    if options['dynamic']:
        return 'dynamic'
    return 'dynamic batch, fixed size' if options.get('dynamic_batch') else 'fixed'


def _judge_whole(verdict: Verdict, deployment: Deployment, metadata: Metadata) -> None:
    """Add what single rows cannot see: that nothing was compared, or nothing was found."""
    verdict.reasons += whole_reasons(verdict.cases, verdict.precision)
    verdict.notes += normalisation_notes(deployment)
    verdict.notes += override_notes(deployment, metadata)
    if metadata.options.get('score_form') == 'product':
        verdict.notes.append(
            'score_form=product keeps no class scores, so detections are not compared: a threshold on '
            'the product is not the one that get_bboxes applies'
        )
