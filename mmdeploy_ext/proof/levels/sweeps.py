"""Levels 1 to 3 of the ladder for LiDAR models without a memory: exported files against PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.compare.tensors import compare_tensors, same_bits
from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.core.errors import DataError, InferenceError
from mmdeploy_ext.proof import half
from mmdeploy_ext.proof.enough import AGAIN, too_few
from mmdeploy_ext.proof.levels.sequence import (
    Timed,
    check_files,
    closed_with,
    length_of,
    output_spec,
    shown_engine,
    with_progress,
)
from mmdeploy_ext.proof.tasks import task_module
from mmdeploy_ext.proof.verdict import Case, DetectionRow, SweepPair, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.runtime.frames import Stepper, StepResult, Sweep

MAX_PICTURES = 4
SWEEPS = 'use sweeps with objects that this model finds, more of them (--frames), and a trained checkpoint'


def prove_sweeps(
    deployment: Deployment,
    paths: Sequence[str],
    sweeps: Iterable[Sweep],
    engine: Mapping[str, Any],
    edited: bool = False,
) -> tuple[Verdict, list[SweepPair]]:
    """Prove the files of one export.

    Args:
        deployment: the config and checkpoint that they claim to be.
        paths: of the files.
        sweeps: none of them was traced: the exporter sees random numbers.
        engine: options of `build_backend`.
        edited: the files were edited on purpose: inputs alone decide about their graphs.

    Returns:
        The verdict, and sweeps with both engines' detections for the report.

    Raises:
        ModelFileError: a file is not there, not ours, or of another model family.
    """
    verdict, metadata = check_files(deployment, paths, engine, edited)
    spec = output_spec(metadata)
    pairs: list[SweepPair] = []
    engine = shown_engine(metadata, engine)
    with contextlib.ExitStack() as stack:
        reference = Timed(deployment.family.reference(deployment.model))
        runner = Timed(closed_with(stack, deployment.family.runner(paths, engine)))
        for sweep in with_progress(sweeps, length_of(sweeps)):
            expected = reference.step(sweep)
            given = sweep, expected, runner, spec, deployment.family.task, verdict.precision
            case, found = judge(*given)
            verdict.cases.append(case)
            if found is not None:
                verdict.cases += _again(case, found, *judge(*given))
            if found is not None and len(pairs) < MAX_PICTURES:
                title = f'{sweep.name or "sweep"}, {len(sweep.points)} points'
                pairs.append(SweepPair(title, sweep.points, expected.detections, found.detections))
    if verdict.precision != 'fp32':
        half.judge_whole(verdict, bool(engine.get('round_fp16')))
    if reference.seconds and runner.seconds:
        verdict.timing_ms = {
            'PyTorch (sweep)': reference.median_ms(),
            f'{verdict.subject["engine"]} (sweep)': runner.median_ms(),
        }
    if all(case.passed for case in verdict.cases):
        first = [case for case in verdict.cases if not case.name.endswith(AGAIN)]
        matched = [sum(row.matched for row in case.detections) for case in first]
        verdict.reasons += too_few(matched, 'sweep', SWEEPS)
    return verdict, pairs


def _again(case: Case, found: StepResult, second_case: Case, second: StepResult | None) -> list[Case]:
    """Return the case of a second run, where it did not give the same bits as the first."""
    if second is not None and same_bits(found.outputs, second.outputs):
        return []
    return [dataclasses.replace(second_case, name=case.name + AGAIN)]


def judge(
    sweep: Sweep, expected: StepResult, runner: Stepper, spec: GraphSpec, task: str, precision: str = 'fp32'
) -> tuple[Case, StepResult | None]:
    """Run one sweep and compare tensors and detections; an engine that fails is a failed case."""
    shape = 'x'.join(map(str, sweep.points.shape))
    try:
        found = runner.step(sweep)
    except (ValueError, InferenceError, DataError) as error:
        wanted = len(expected.detections)
        reason = f'no detections: {one_line(error)[:200]}'
        failed = DetectionRow(sweep.name, wanted, 0, wanted, 0, 0.0, 1.0, False, reason, broken=True)
        return Case(sweep.name, shape, False, (), (failed,)), None
    rows, bars = compare_tensors(expected.outputs, found.outputs, spec), {}
    if low := half.bars_of(precision):
        rows, bars = half.judge(rows, low.cosine), low.of_task(task)
    match = task_module(task).match_detections
    detections = match('boxes', expected.detections, found.detections, **bars)
    return Case(sweep.name, shape, False, tuple(rows), (detections,)), found
