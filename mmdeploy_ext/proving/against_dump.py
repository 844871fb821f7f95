"""Compare an engine with the tensors of PyTorch's test loop (`base/dump.py`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.dump import list_samples, load_dump
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.pictures import options_besides_form
from mmdeploy_ext.proving.subject import Sample, Step, Subject
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.spec.results import accept_rate, bars_of
from mmdeploy_ext.spec.verdict import AGREES, Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.runtime.frames import Stepper
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.results import Case
    from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec

    Arrays = Mapping[str, np.ndarray]

FAR = 1e-5
"""Allowed difference in metres per metre from the map's origin; see `far_spec`."""


def check_dump(subject: ImageDump | FrameDump, detector: Detector, folder: Path) -> Verdict:
    """Run an engine on a dump and print a line per sample; the verdict has the claim `AGREES`.

    A missing dump is a note; an incomparable sample is not a failure.
    """
    verdict, samples = Verdict(dict(file=str(folder)), claim=AGREES), list_samples(folder)
    if not samples:
        verdict.notes.append(
            f'no dump in {folder}: tensors are not compared; to compare them, run first with --torch '
            f'--cfg-options backend_config.dump={{}}'
        )
    subject.given = []
    for sample in samples:
        tensors, manifest = load_dump(sample)
        try:
            for key in ('config_sha256', 'checkpoint_sha256'):
                if manifest.get(key) != getattr(detector, key):
                    raise DataError(f'it was dumped from another {key.removesuffix("_sha256")}')
            subject.check(tensors, manifest)
        except DataError as error:
            verdict.findings.append(Finding('outputs', str(sample), None, f'not compared: {error}'))
            print(verdict.findings[-1].line)
        else:
            subject.given.append(sample)
    cases = [accept_rate([case], subject.bars)[0][0] for case in compare(subject)[0]]
    for sample, case in zip(subject.given, cases, strict=True):
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


class ImageDump(Subject):
    """Dumped images, and a backend that runs them."""

    again = -1

    def __init__(self, backend: Backend, detector: Detector) -> None:
        self.backend, self.detector, self.metadata = backend, detector, backend.metadata
        self.spec, self.task, self.module = backend.spec, detector.family.task, detector.model
        self.bars = bars_of(backend.computes_in or backend.metadata.precision)
        self.code = detector.family.reference(detector.model)

    def check(self, tensors: Arrays, manifest: Mapping[str, Any]) -> None:
        needed = [tensor.name for tensor in self.spec.inputs if tensor.default is None]
        _require(tensors, needed + self.spec.output_names)

    def sample(self, entry: Path, index: int, mode: str) -> Sample:
        tensors, _ = load_dump(entry)
        shape = 'x'.join(map(str, tensors[self.spec.input_names[0]].shape))
        return Sample(entry.name, tensors, shape, titles=[entry.name])

    def want(self, sample: Sample, state: Any) -> Step:
        return self._step(sample.data, {name: sample.data[name] for name in self.spec.output_names})

    def got(self, sample: Sample, state: Any) -> Step:
        feeds = {name: sample.data[name] for name in self.spec.input_names if name in sample.data}
        return self._step({**sample.data, **feeds}, self.backend.infer(feeds))

    def _step(self, given: Arrays, outputs: Arrays) -> Step:
        family, is_full = self.detector.family.name, self.metadata.form == 'full'
        return Step(outputs, results_of(family, self.metadata, outputs, given) if is_full else None)

    def align(self, sample: Sample, want: Step, got: Step) -> Any:
        valued = [tensor.name for tensor in self.spec.outputs if tensor.compare == 'values']
        expected = {name: want.tensors[name] for name in valued}
        sides = [(want, expected), (got, got.tensors if valued else {})]
        return *(dataclasses.replace(step, tensors=self.code.in_order(side)) for step, side in sides), ()

    def tensors(self, sample: Sample, state: Any, got: Step) -> Arrays:
        options = options_besides_form(self.detector, self.metadata)
        return self.code.in_order(self.code.tensors(sample.data, self.metadata.form, **options))


class FrameDump(Subject):
    """Dumped frames, and one export's files that run them; memory persists over frames.

    A frame in a scene requires the comparison of its predecessor.
    """

    again = -1

    def __init__(self, stepper: Stepper, metadata: Sequence[Metadata], detector: Detector) -> None:
        self.stepper, self.family, last = stepper, detector.family, metadata[-1]
        self.bars = bars_of(last.precision)
        specs = {tensor.name: tensor for file in metadata for tensor in file.spec.outputs}
        compared = self.family.data.compared or last.spec.output_names
        self.names = tuple(name for name in compared if name in specs)
        outputs = tuple(specs[name] for name in self.names)
        self.near = dataclasses.replace(last.spec, outputs=outputs, state=())
        self.previous: int | None = None

    def check(self, tensors: Arrays, manifest: Mapping[str, Any]) -> None:
        before, self.previous = self.previous, None
        if not self.names:
            raise DataError(f'the files have none of the outputs {", ".join(self.family.data.compared)}')
        _require(tensors, self.names)
        continues = before is not None and manifest.get('sample') == before + 1
        if self._remembers(tensors) and not continues:
            raise DataError('the previous frame was not dumped or not compared, so its memory is unknown')
        self.family.data.dumped_frame(tensors, manifest)
        self.previous = manifest['sample']

    def _remembers(self, tensors: Arrays) -> bool:
        if not self.family.memory:
            return False
        _require(tensors, ['prev_exists'])
        return float(tensors['prev_exists'].max()) > 0

    def sample(self, entry: Path, index: int, mode: str) -> Sample:
        tensors, manifest = load_dump(entry)
        frame = self.family.data.dumped_frame(tensors, manifest)
        return Sample(entry.name, (tensors, frame), alone=not self._remembers(tensors))

    def want(self, sample: Sample, state: Any) -> Step:
        return Step({name: sample.data[0][name] for name in self.names})

    def got(self, sample: Sample, state: Any) -> Step:
        if self.family.memory and sample.alone:  # a run with memory='reset' dumps frames without a memory
            self.stepper.reset()
        outputs = self.stepper.step(sample.data[1]).outputs
        return Step({name: outputs[name] for name in self.names})

    def align(self, sample: Sample, want: Step, got: Step) -> Any:
        distance_m = 0.0
        if self.family.memory:
            distance_m = float(np.linalg.norm(sample.data[1].ego_pose[:3, 3]))
        self.spec = far_spec(self.near, distance_m)
        # a file may return only the last decoder layer
        last = {name: array[-got.tensors[name].shape[0] :] for name, array in want.tensors.items()}
        return dataclasses.replace(want, tensors=last), got, ()


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
