"""Compare an engine with the tensors that a `_pth` run wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.compare.rows import TensorRow
from mmdeploy_ext.compare.tensors import compare_tensors, without_ties
from mmdeploy_ext.contract.spec import DEFAULT_RTOL
from mmdeploy_ext.core.dump import list_samples, load_dump
from mmdeploy_ext.proof import half
from mmdeploy_ext.proof.tasks import task_module
from mmdeploy_ext.proof.verdict import Case
from mmdeploy_ext.runtime.detections import results_from_padded

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.engines import Backend


DISAGREES = (
    'NOT PROVEN: the engine gives other tensors than PyTorch dumped; find out with '
    'tools/deployment/verify.py, or set backend_config.check_dump=False to evaluate all the same'
)


def check_dump(backend: Backend, deployment: Deployment, folder: Path) -> bool:
    """Feed each dumped sample to the engine and compare what comes out; prints one line per sample.

    Args:
        backend: an active ONNX engine.
        deployment: config and checkpoint, which the dump has to be of.
        folder: of the dump; no dump is no failure, it is said.

    Returns:
        False when a sample differs.
    """
    agrees = True
    for sample in dumped_samples(folder):
        tensors, manifest = load_dump(sample)
        usable = foreign(manifest, deployment) or _incomplete(tensors, backend)
        if usable:
            print(f'{sample}: not compared: {usable}')
            continue
        case = _compare(sample.name, tensors, backend, deployment)
        rows = (*case.tensors, *case.detections)
        reasons = [row.reason for row in rows if not row.passed]
        agrees &= case.passed
        print(
            f'{sample}: {"agrees" if case.passed else "DIFFERS"} (compared: {len(rows)}'
            f'{"; " + reasons[0] if reasons else ""})'
        )
    if not agrees:
        print(DISAGREES)
    return agrees


def dumped_samples(folder: Path) -> list[Path]:
    """Return the sample folders of a dump, in order; says so when there is none."""
    samples = list_samples(folder)
    if not samples:
        print(f'no dump in {folder}: run the _pth config first to have its tensors compared')
    return samples


def foreign(manifest: Mapping[str, Any], deployment: Deployment) -> str:
    """Return why a dump says nothing about this model; '' when it does."""
    for key in ('config_sha256', 'checkpoint_sha256'):
        if manifest.get(key) != getattr(deployment, key):
            return f'it was dumped from another {key.removesuffix("_sha256")}'
    return ''


def _incomplete(tensors: Mapping[str, np.ndarray], backend: Backend) -> str:
    """Return which tensors a sample lacks; '' when it has them all."""
    required = [
        tensor.name for tensor in backend.spec.inputs if tensor.default is None
    ] + backend.spec.output_names
    missing = [name for name in required if name not in tensors]
    return f'it has no {", ".join(missing)}' if missing else ''


def _compare(name: str, tensors: Mapping[str, np.ndarray], backend: Backend, deployment: Deployment) -> Case:
    feeds = {key: tensors[key] for key in backend.spec.input_names if key in tensors}
    bars = half.bars_of(half.precision_of(backend.metadata, backend.computes_in))
    ties = dict(ties_rtol=half.CHOICE_RTOL) if bars else {}
    outputs = backend.infer(feeds)
    valued = [tensor.name for tensor in backend.spec.outputs if tensor.compare == 'values']
    rows: tuple[TensorRow, ...] = ()
    if valued:
        family, model = deployment.family, deployment.model
        dumped = {key: tensors[key] for key in valued}
        reference = family.choose_as(model, feeds, outputs, dumped, **ties)
        slack = half.RTOL if bars else DEFAULT_RTOL
        got = without_ties(
            reference, {key: outputs[key] for key in valued}, family.harmless(model, feeds), slack
        )
        rows = tuple(compare_tensors(reference, got, backend.spec))
        rows = tuple(half.judge(rows, bars.cosine)) if bars else rows
    dumped = {key: tensors[key] for key in outputs}
    pairs = zip(results_from_padded(dumped), results_from_padded(outputs), strict=True)
    capacity = backend.metadata.postprocess.get('max_per_img')
    task = deployment.family.task
    match, judged = task_module(task).match_detections, bars.of_task(task) if bars else {}
    detections = tuple(match(name, wanted, found, capacity=capacity, **judged) for wanted, found in pairs)
    case = Case(name, 'x'.join(map(str, feeds[backend.spec.input_names[0]].shape)), False, rows, detections)
    return half.accept_rate([case], bars)[0][0] if bars else case
