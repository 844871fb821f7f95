"""Compare an engine with the tensors of PyTorch's test loop (`base/dump.py`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.dump import list_samples, load_dump
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.proving.explain import rounding_of
from mmdeploy_ext.proving.references import options_besides_form
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.runtime.tasks import match
from mmdeploy_ext.spec.comparison import compare_tensors
from mmdeploy_ext.spec.results import Bars, Case, TensorRow, accept_rate, bars_of
from mmdeploy_ext.spec.verdict import AGREES, Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.runtime.frames import Stepper
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec

FAR = 1e-5
"""Allowed difference in metres per metre from the map's origin; see `far_spec`."""


class DumpComparer(Protocol):
    """Runs a dump's samples in order and compares the outputs."""

    def compare(self, name: str, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Case:
        """Run one sample and compare its outputs."""


def check_dump(comparer: DumpComparer, detector: Detector, folder: Path) -> Verdict:
    """Run an engine on a dump and print a line per sample; the verdict has the claim `AGREES`.

    A missing dump is a note; an incomparable sample is not a failure.
    """
    verdict, samples = Verdict(dict(file=str(folder)), claim=AGREES), list_samples(folder)
    cases: list[Case] = []
    if not samples:
        verdict.notes.append(
            f'no dump in {folder}: tensors are not compared; to compare them, run first with --torch '
            f'--cfg-options backend_config.dump={{}}'
        )
    for sample in samples:
        tensors, manifest = load_dump(sample)
        try:
            for key in ('config_sha256', 'checkpoint_sha256'):
                if manifest.get(key) != getattr(detector, key):
                    raise DataError(f'it was dumped from another {key.removesuffix("_sha256")}')
            case = comparer.compare(sample.name, tensors, manifest)
        except DataError as error:
            verdict.findings.append(Finding('outputs', str(sample), None, f'not compared: {error}'))
            print(verdict.findings[-1].line)
        else:
            cases.append(case)
            print(f'{sample}: {_text(case)}')
    verdict.add_outputs(cases)
    if not verdict.passed:
        verdict.notes.append(
            'NOT PROVEN: the tensors of the engine and of PyTorch differ; compare them with '
            f'{tool("verify")}, or set backend_config.check_dump=False to evaluate anyway'
        )
    for note in verdict.notes:
        print(note)
    return verdict


def _text(case: Case) -> str:
    reasons = [f'{row.tensor}: {row.reason}' for row in case.tensors if not row.passed]
    reasons += [row.reason for row in case.detections if not row.passed]
    errors = [row.max_abs for row in case.tensors if row.max_abs is not None]
    worst = f'worst {max(errors):.2g}, ' if errors else ''
    word = 'agrees' if case.passed else f'DIFFERS: {reasons[0]}'
    return f'{word} ({worst}compared: {len(case.tensors) + len(case.detections)})'


def _require(tensors: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise DataError(f'it has no {", ".join(missing)}')


@dataclasses.dataclass(frozen=True)
class ImageDumpComparer:
    """Compares a backend on dumped images."""

    backend: Backend
    detector: Detector

    def compare(self, name: str, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Case:
        backend, family = self.backend, self.detector.family
        needed = [tensor.name for tensor in backend.spec.inputs if tensor.default is None]
        _require(tensors, needed + backend.spec.output_names)
        feeds = {key: tensors[key] for key in backend.spec.input_names if key in tensors}
        bars = bars_of(backend.computes_in or backend.metadata.precision)
        outputs = backend.infer(feeds)
        dumped = {key: tensors[key] for key in outputs}
        both = (dumped, outputs) if backend.metadata.form == 'full' else ()
        results = [results_of(family.name, backend.metadata, side, {**tensors, **feeds}) for side in both]
        pairs = zip(*results, strict=True)
        detections = tuple(match(family.task, name, *pair, bars) for pair in pairs)
        shape = 'x'.join(map(str, feeds[backend.spec.input_names[0]].shape))
        case = Case(name, shape, False, self._compare_tensors(tensors, outputs, bars), detections)
        return accept_rate([case], bars)[0][0]

    def _compare_tensors(
        self,
        tensors: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        bars: Bars,
    ) -> tuple[TensorRow, ...]:
        spec, metadata = self.backend.spec, self.backend.metadata
        valued = [tensor.name for tensor in spec.outputs if tensor.compare == 'values']
        if not valued:
            return ()
        expected = {name: tensors[name] for name in valued}
        code = self.detector.family.reference(self.detector.model)

        def run() -> Mapping[str, np.ndarray]:
            options = options_besides_form(self.detector, metadata)
            return code.in_order(code.tensors(tensors, metadata.form, **options))

        sides = code.in_order(expected), code.in_order(outputs)
        return tuple(compare_tensors(*sides, spec, rounding_of(code.model, sides[0], run), bars))


class FrameDumpComparer:
    """Compares one export's files on dumped frames; memory persists over frames.

    A frame in a scene requires the comparison of its predecessor.
    """

    def __init__(self, stepper: Stepper, metadata: Sequence[Metadata], detector: Detector) -> None:
        self.stepper, self.family, last = stepper, detector.family, metadata[-1]
        self.bars = bars_of(last.precision)
        specs = {tensor.name: tensor for file in metadata for tensor in file.spec.outputs}
        compared = self.family.data.compared or last.spec.output_names
        self.names = tuple(name for name in compared if name in specs)
        outputs = tuple(specs[name] for name in self.names)
        self.spec = dataclasses.replace(last.spec, outputs=outputs, state=())
        self.previous: int | None = None

    def compare(self, name: str, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Case:
        before, self.previous = self.previous, None
        continues = before is not None and manifest.get('sample') == before + 1
        if not self.names:
            raise DataError(f'the files have none of the outputs {", ".join(self.family.data.compared)}')
        _require(tensors, self.names)
        distance = 0.0
        if self.family.memory:
            _require(tensors, ['prev_exists'])
            remembers = float(tensors['prev_exists'].max()) > 0
            if remembers and not continues:
                raise DataError('the previous frame was not dumped or not compared, so its memory is unknown')
        frame = self.family.data.dumped_frame(tensors, manifest)
        if self.family.memory:
            distance = float(np.linalg.norm(frame.ego_pose[:3, 3]))
            if not remembers:  # a run with memory='reset' dumps frames without a memory
                self.stepper.reset()
        outputs = self.stepper.step(frame).outputs
        self.previous = manifest['sample']
        # a file may return only the last decoder layer
        reference = {key: tensors[key][-outputs[key].shape[0] :] for key in self.names}
        compared = {key: outputs[key] for key in self.names}
        rows = compare_tensors(reference, compared, far_spec(self.spec, distance), bars=self.bars)
        return Case(name, '', False, tuple(rows))


def far_spec(spec: GraphSpec, distance_m: float) -> GraphSpec:
    """Add `FAR` times the distance to tolerances in metres.

    The dumped model keeps global positions in float32: errors are 7.4 mm at 980 m, 0.04 mm near the
    origin.
    """

    def allowed(group: ColumnGroup) -> ColumnGroup:
        far = FAR * distance_m if group.unit == 'm' else 0.0
        return dataclasses.replace(group, atol=group.atol + far)

    outputs = (
        dataclasses.replace(tensor, groups=tuple(map(allowed, tensor.column_groups)))
        for tensor in spec.outputs
    )
    return dataclasses.replace(spec, outputs=tuple(outputs))
