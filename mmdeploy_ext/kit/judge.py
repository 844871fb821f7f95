"""Compares the outputs of an engine with PyTorch's results in a kit. Needs numpy and OpenCV, no PyTorch.

The bars of a precision are the limits that outputs in less than float32 have to keep, see
`proving/half_bars.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.kit.contents import MODEL, Case, read_manifest
from mmdeploy_ext.kit.outputs import check_kit, read_outputs
from mmdeploy_ext.proving import half_bars, results
from mmdeploy_ext.proving.levels.run_twice import FAILURES
from mmdeploy_ext.proving.tasks import task_module
from mmdeploy_ext.proving.tensors import compare_tensors, failed_row
from mmdeploy_ext.runtime.family_runtime import runtime_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.proving.half_bars import HalfBars


@dataclasses.dataclass
class Judgement:
    """The result of `judge`.

    Attributes:
        told: text of the user about device, engine and version, which is printed and not checked; '' if none.
        precision: 'fp32', 'fp16' or 'int8', by whose bars the outputs are judged.
        cases: the comparison of each input of the kit, in the order of its manifest.
    """

    told: str
    precision: str
    cases: list[results.Case] = dataclasses.field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether every tensor and every result of every case is PyTorch's, and something was compared."""
        matched = sum(row.matched for case in self.cases for row in case.detections)
        tensors = any(case.tensors for case in self.cases)
        return bool(matched or tensors) and all(case.passed for case in self.cases)

    @property
    def title(self) -> str:
        """The claim, which is only about these inputs, with what the user told of the device."""
        claim = 'EQUAL' if self.precision == 'fp32' else f'WITHIN {self.precision.upper()} BARS'
        told = f' ({self.told}, as told)' if self.told else ''
        return f'{claim} ON {len(self.cases)} INPUTS{told}' if self.equal else f'NOT {claim}{told}'

    @property
    def failures(self) -> list[str]:
        """A sentence for each tensor and image that differs: case, name and reason."""
        failures = []
        for case in self.cases:
            failures += [f'{case.name}: {row.tensor}: {row.reason}' for row in case.tensors if not row.passed]
            failures += [
                f'{case.name}: {row.image}: {row.reason}' for row in case.detections if not row.passed
            ]
        return failures

    def to_json(self) -> dict[str, Any]:
        """Return `verdict` (the title), `equal`, `failures` and `cases` in plain JSON types."""
        cases = [dataclasses.asdict(case) | dict(passed=case.passed) for case in self.cases]
        return dict(verdict=self.title, equal=self.equal, failures=self.failures, cases=cases)


def judge(kit: str | Path, outputs: str | Path, *, told: str = '', precision: str = 'fp32') -> Judgement:
    """Compare the outputs of an engine with PyTorch's results in a kit.

    Args:
        kit: the folder that `mm2onnx kit` wrote.
        outputs: a folder with the outputs of every case, as the module `kit/outputs.py` describes it.
        told: device, engine and version, as the user tells them.
        precision: 'fp32', or 'fp16' or 'int8', whose wider bars are those of the proof.

    Raises:
        DataError: a kit that is not whole, or outputs of another kit.
    """
    kit, outputs = Path(kit), Path(outputs)
    manifest = read_manifest(kit)
    if not outputs.is_dir():
        raise DataError(f'{outputs}: no such folder of outputs')
    check_kit(outputs, manifest['kit_sha256'])
    metadata = read_metadata(kit / MODEL)
    judgement = Judgement(told, precision)
    bars = None if precision == 'fp32' else half_bars.bars_of(precision)
    for entry in manifest['cases']:
        case = Case.read(kit, entry)
        shapes = {name: tuple(shape) for name, shape in entry['output_shapes'].items()}
        try:
            arrays = read_outputs(outputs, case.name, metadata.spec, shapes)
        except DataError as error:
            row = failed_row('all outputs', one_line(error))
            judgement.cases.append(results.Case(f'{case.name} {case.title}', '', False, (row,)))
            continue
        judgement.cases.append(judge_case(case, arrays, metadata, manifest['task'], bars))
    return judgement


def judge_case(
    case: Case, arrays: Mapping[str, np.ndarray], metadata: Metadata, task: str, bars: HalfBars | None
) -> results.Case:
    """Compare the outputs of one case: names, dtypes and values of tensors, and results per image.

    Args:
        case: with the inputs, and PyTorch's tensors and results.
        arrays: name -> output of the engine; names that are missing or unknown fail.
        metadata: of the file.
        task: name of the task that matches results, see `proving/tasks`.
        bars: of float16 or INT8; None for float32, which has tolerances.
    """
    spec = metadata.spec
    rows = [
        failed_row(name, f'missing; the engine gave {", ".join(arrays) or "nothing"}')
        for name in spec.output_names
        if name not in arrays
    ]
    rows += [
        failed_row(name, f'not an output of this kit; these are {", ".join(spec.output_names)}', arrays[name])
        for name in arrays
        if name not in spec.output_names
    ]
    arrays = {
        name: _in_dtype_of_spec(array, spec.tensor(name).dtype)
        for name, array in arrays.items()
        if name in spec.output_names
    }
    rows += [
        failed_row(name, f'dtype: got {array.dtype}, expected {spec.tensor(name).dtype}', array)
        for name, array in arrays.items()
        if array.dtype != np.dtype(spec.tensor(name).dtype)
    ]
    if case.tensors and not rows:
        compared = compare_tensors(case.tensors, arrays, spec)
        rows += bars.judge(compared) if bars else compared
    detections: tuple[results.DetectionRow, ...] = ()
    if not rows or all(row.passed for row in rows):
        detections = _match(case, arrays, metadata, task, bars)
    shapes = ', '.join('x'.join(map(str, array.shape)) for array in case.inputs.values())
    return results.Case(f'{case.name} {case.title}', shapes, False, tuple(rows), detections)


def _in_dtype_of_spec(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return whole numbers in the dtype of the file if that changes none: some engines lack int64 or bool."""
    expected = np.dtype(dtype)
    if array.dtype.kind in 'iub' and expected.kind in 'iub':
        converted = array.astype(expected)
        return converted if np.array_equal(converted, array) else array
    return array


def _match(
    case: Case, arrays: Mapping[str, np.ndarray], metadata: Metadata, task: str, bars: HalfBars | None
) -> tuple[results.DetectionRow, ...]:
    """Match the results of every image with PyTorch's, after the post-processing of the runtime."""
    module, settings = task_module(task), bars.of_task(task) if bars else {}
    capacity = metadata.postprocess.get('max_per_img')
    try:
        feeds = {**case.inputs, **case.beside}
        candidates = runtime_of(metadata.family).detections(metadata, arrays, feeds)
        if len(candidates) != len(case.results):
            raise DataError(f'got results of {len(candidates)} images, expected {len(case.results)}')
    except FAILURES as error:
        reason = f'no results: {one_line(error)[:200]}'
        return tuple(
            results.DetectionRow(title, len(image), 0, len(image), 0, 0.0, 1.0, False, reason, broken=True)
            for title, image in zip(case.images, case.results, strict=True)
        )
    return tuple(
        module.match_detections(title, reference, candidate, capacity=capacity, **settings)
        for title, reference, candidate in zip(case.images, case.results, candidates, strict=True)
    )
