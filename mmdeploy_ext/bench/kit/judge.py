"""Compares an engine's outputs with PyTorch's results in a kit. Needs numpy only."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import DataError, UsageError, on_inputs, one_line
from mmdeploy_ext.bench.kit.contents import KitCase, KitGraph, read_manifest
from mmdeploy_ext.bench.kit.diagnosis import MOST_IMAGES, diagnose, misfit
from mmdeploy_ext.bench.kit.drive import DriveJudge
from mmdeploy_ext.bench.kit.outputs import check_kit, has_outputs, read_outputs
from mmdeploy_ext.engines.base import FAILURES
from mmdeploy_ext.runtime.detect import results_of, runtime_of
from mmdeploy_ext.runtime.tasks import match
from mmdeploy_ext.spec import results
from mmdeploy_ext.spec.bars import accept_rate
from mmdeploy_ext.spec.comparison import compare_tensors, failed_row, order_rows
from mmdeploy_ext.spec.matching import in_order_of, lone_low_results
from mmdeploy_ext.spec.verdict import EQUAL, NOTHING_COMPARED, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.bench.kit.contents import ChainedFrame, StoredCase
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.results import TensorRow

PRECISIONS = ('fp32', 'fp16', 'int8')


def title_of(verdict: Verdict) -> str:
    """Return the claim of a judge's verdict with the numbers of inputs and frames, and the device."""
    subject = verdict.subject
    device = f'{subject["told"]}, as told' if subject['told'] else subject['ran']
    suffix = f' ({device})' if device else ''
    if not verdict.passed:
        return f'{verdict.title}{suffix}'
    frames = f' AND {subject["frames"]} FRAMES' if subject['frames'] else ''
    return f'{verdict.title} {on_inputs(subject["inputs"])}{frames}{suffix}'


def to_json(verdict: Verdict) -> dict[str, Any]:
    """Return `verdict`, `equal`, `failures`, facts of the subject, and the verdict as plain JSON types."""
    first = dict(verdict=title_of(verdict), equal=verdict.passed, failures=verdict.failures)
    return verdict.to_json() | verdict.subject | first


def promised_rows(metadata: Metadata, arrays: Mapping[str, np.ndarray]) -> list[TensorRow]:
    """Failing rows for the order and padding that a `full` file of pictures promises."""
    if metadata.samples != 'images':
        return []
    classes = getattr(metadata.postprocess, 'num_classes', len(metadata.classes))
    return order_rows(arrays, classes, metadata.spec.score_columns())


def judge(kit: str | Path, outputs: str | Path, *, told: str = '', precision: str | None = None) -> Verdict:
    """Compare the outputs of an engine with PyTorch's results in a kit.

    Args:
        kit: folder that `mm2onnx kit` wrote.
        outputs: folder with the outputs of every case, see `read_outputs`.
        told: device, engine and version, as the user tells them.
        precision: 'fp32', 'fp16' or 'int8', the proof's tolerances; None: the file's precision, of several
            files the first that is not 'fp32'.

    Returns:
        A verdict with the claim `EQUAL`; in its subject `told` and `precision`, `ran` (engine and device of
        `run_kit`, or ''), numbers of `inputs` and of `frames` of files that ran one after the other. Missing
        or unreadable outputs, and wrong names, dtypes or shapes, are failures in it;
        integers may have another integer dtype or bool.
    """
    if precision not in (None, *PRECISIONS):
        raise UsageError(f'precision={precision!r}: expected one of {", ".join(PRECISIONS)}')
    return _Judge(Path(kit), Path(outputs), told, precision).judge()


class _Judge:
    def __init__(self, kit: Path, outputs: Path, told: str, precision: str | None) -> None:
        self.kit, self.outputs, self.manifest = kit, outputs, read_manifest(kit)
        if not outputs.is_dir():
            got = 'is a file' if outputs.exists() else 'no such folder'
            raise DataError(f'{outputs}: {got}; expected the folder that the engine wrote outputs to')
        is_named = check_kit(outputs, self.manifest.kit_sha256)
        self.graphs = {entry.name: KitGraph.from_json(entry) for entry in self.manifest.graphs}
        self.cases = {entry.name: entry for entry in self.manifest.cases}
        precisions = [graph.metadata.precision for graph in self.graphs.values() if graph.metadata]
        of_files = next((name for name in precisions if name != 'fp32'), 'fp32')
        # a file for libspconv has no precision in its metadata
        of_files = self.manifest.precision or of_files
        subject = dict(told=told, precision=precision or of_files, ran='', inputs=len(self.cases), frames=0)
        self.verdict = Verdict(subject, claim=EQUAL)
        self.bars = self.verdict.bars
        if not is_named:
            self.verdict.notes.append(
                'the outputs have no kit.txt, so it is not certain that they belong to this kit'
            )
        if self.manifest.teacher_forced:
            self.verdict.notes.append(
                "the memory is updated outside of the files: every frame ran on PyTorch's memory, so "
                'neither drift nor the code that updates it was tested'
            )

    def judge(self) -> Verdict:
        verdict, frames = self.verdict, [*self.manifest.frames]
        runs = [*self.cases, *(frame.outputs for frame in frames)]
        if not any(has_outputs(self.outputs, run) for run in runs):
            raise DataError(
                f'{self.outputs}: has no outputs for any input of the kit; expected {runs[0]}.npz or '
                f'{runs[0]}/NAME.bin and so on, as the programs in {self.kit} write them'
            )
        is_chained = any(has_outputs(self.outputs, frame.outputs) for frame in frames)
        if frames and not is_chained:
            verdict.notes.append(
                f'{len(frames)} frames in sequence: no {frames[0].outputs} and so on; not tested'
            )
        has_memory = self.manifest.memory is not None
        of_drive = {frame.last_case for frame in frames} if has_memory else set()
        cases = [self._judge(self.cases[name], name) for name in self.cases if name not in of_drive]
        sequences: list[results.SequenceRow] = []
        if is_chained:
            verdict.subject['frames'] = len(frames)
        if has_memory:
            sequences = self._judge_drive(frames, is_chained, cases)
        elif is_chained:
            cases += [self._judge(self.cases[frame.last_case], frame.outputs) for frame in frames]
        cases, reason = accept_rate(cases, self.bars)
        verdict.add_failures(filter(None, [reason]))
        rows = [row for case in cases for row in case.detections]
        if self.bars.is_float32:
            verdict.add_failures(
                lone_low_results(sum(row.low for row in rows), sum(row.low_alone for row in rows))
            )
        verdict.add_outputs(cases, sequences)
        has_values = any(row.matched for row in rows) or any(row.tensors for row in (*cases, *sequences))
        if verdict.passed and not has_values:
            verdict.add_failures([f'{NOTHING_COMPARED}: PyTorch finds nothing in these inputs'])
        return verdict

    def _judge_drive(
        self, frames: list[ChainedFrame], is_chained: bool, cases: list[results.Case]
    ) -> list[results.SequenceRow]:
        """Return the modes that ran; `cases` get outputs of a wrong form."""
        last = list(self.graphs.values())[-1]
        drive = DriveJudge(self.manifest, last, self.verdict.precision)
        for mode in ('teacher', 'free') if is_chained else ('teacher',):
            for frame in frames:
                entry = self.cases[frame.last_case]
                name = entry.name if mode == 'teacher' else frame.outputs
                case = self._case(entry)
                arrays, rows = self._read(entry, name)
                if rows:
                    cases.append(results.Case(f'{name} {case.title}', '', False, tuple(rows)))
                else:
                    drive.add(mode, frame, case, arrays)
        return drive.finish()

    def _case(self, entry: StoredCase) -> KitCase:
        metadata = self.graphs[entry.graph].metadata
        return KitCase.read(self.kit, entry, metadata.family if metadata else '')

    def _read(self, entry: StoredCase, name: str) -> tuple[dict[str, np.ndarray], list[TensorRow]]:
        spec = self.graphs[entry.graph].spec
        shapes = dict(entry.output_shapes)
        try:
            arrays = read_outputs(self.outputs, name, spec, shapes)
        except DataError as error:
            return {}, [failed_row('all outputs', one_line(error))]
        rows = [
            failed_row(output, f'missing; the engine wrote {", ".join(arrays) or "nothing"}')
            for output in spec.output_names
            if output not in arrays
        ]
        outputs = {}
        for output, array in arrays.items():
            if output not in spec.output_names:
                reason = f'not an output of this kit; expected {", ".join(spec.output_names)}'
                rows.append(failed_row(output, reason, array))
                continue
            tensor = spec.tensor(output)
            if array.dtype.kind in 'iub' and np.dtype(tensor.dtype).kind in 'iub':
                converted = array.astype(tensor.dtype)  # of an engine that lacks int64 or bool
                array = converted if np.array_equal(converted, array) else array
            if reason := misfit(array, tensor):
                rows.append(failed_row(output, reason, array))
            is_compared_as_half = output in entry.tensors and entry.tensors[output].dtype == 'float16'
            if array.dtype == np.float16 and not is_compared_as_half:
                array = array.astype(np.float32)
            outputs[output] = array
        return outputs, rows

    def _judge(self, entry: StoredCase, name: str) -> results.Case:
        case = self._case(entry)
        arrays, rows = self._read(entry, name)
        if case.tensors:
            rows = rows or self._compare(case, arrays)
            rows = [_explained(row, case.tensors, arrays) for row in rows]
        elif not case.results:
            rows.append(failed_row('all outputs', 'the kit has no PyTorch results to compare with'))
        detections: tuple[results.DetectionRow, ...] = ()
        if case.results and all(row.passed for row in rows):
            detections = self._match(case, arrays)
            rows += promised_rows(self.graphs[case.graph].metadata, arrays)
        return results.Case(f'{name} {case.title}', '', False, tuple(rows), detections)

    def _compare(self, case: KitCase, arrays: Mapping[str, np.ndarray]) -> list[TensorRow]:
        spec = self.graphs[case.graph].spec
        if ordered := self.manifest.rows:
            arrays = in_order_of(case.tensors, arrays, ordered, self.manifest.tolerance)
        # outputs without a value on both sides are equal, but show nothing
        empty = {n for n, a in case.tensors.items() if not a.size and arrays[n].shape == a.shape}
        sides = ({n: side[n] for n in case.tensors if n not in empty} for side in (case.tensors, arrays))
        outputs = tuple(tensor for tensor in spec.outputs if tensor.name not in empty)
        spec = dataclasses.replace(spec, outputs=outputs)
        return compare_tensors(*sides, spec, lambda _: case.rounding, self.bars)

    def _match(self, case: KitCase, arrays: Mapping[str, np.ndarray]) -> tuple[results.DetectionRow, ...]:
        metadata, task = self.graphs[case.graph].metadata, self.manifest.task
        runtime = runtime_of(metadata.family)
        try:
            if hasattr(runtime, 'boxes_of_outputs'):
                candidates = [runtime.boxes_of_outputs(metadata, arrays)]
            else:
                feeds = metadata.spec.normalised({**case.inputs, **case.beside})
                candidates = results_of(metadata.family, metadata, arrays, feeds)
            if len(candidates) != len(case.results):
                raise DataError(f'got results of {len(candidates)} images, expected {len(case.results)}')

            def matched(images: list[Any]) -> tuple[results.DetectionRow, ...]:
                sides = zip(case.images, case.results, images, strict=True)
                return tuple(match(task, *side, self.bars) for side in sides)

            rows = matched(candidates)
            is_wrong = 2 <= len(rows) <= MOST_IMAGES and not all(row.passed for row in rows)
            for images in itertools.permutations(candidates) if is_wrong else ():
                if all(row.passed for row in matched(list(images))):
                    reason = 'the images of the batch are exchanged'
                    return tuple(dataclasses.replace(row, reason=f'{row.reason}; {reason}') for row in rows)
            return rows
        except FAILURES as error:
            reason = f'no results: {one_line(error)[:200]}'
            counts = [(title, len(image)) for title, image in zip(case.images, case.results, strict=True)]
            return tuple(
                results.DetectionRow(title, count, 0, count, 0, 0.0, 1.0, False, reason, broken=True)
                for title, count in counts
            )


def _explained(
    row: TensorRow, expected: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]
) -> TensorRow:
    name = row.tensor.partition(' [')[0]
    if row.passed or name not in expected or name not in arrays:
        return row
    diagnosis = diagnose(expected[name], arrays[name])
    return dataclasses.replace(row, reason=f'{row.reason}; {diagnosis}') if diagnosis else row
