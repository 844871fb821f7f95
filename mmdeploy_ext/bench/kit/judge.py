"""Compares an engine's outputs with PyTorch's results in a kit. Needs numpy only."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.arrays import ArrayDistance, load_arrays
from mmdeploy_ext.base.errors import DataError, UsageError, on_inputs, one_line, shape_text
from mmdeploy_ext.base.files import will_read
from mmdeploy_ext.base.typed_json import parse_json
from mmdeploy_ext.bench.kit.contents import KIT_HASH, KitCase, KitGraph, name_of_stem, read_manifest
from mmdeploy_ext.engines.base import FAILURES
from mmdeploy_ext.proving.drive_run import MODES, Moment, PairRun, bars_of_task, default_bars
from mmdeploy_ext.runtime.detect import results_of, runtime_of
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.runtime.tasks import match, task_module
from mmdeploy_ext.spec import results
from mmdeploy_ext.spec.comparison import compare_tensors, failed_row, order_rows
from mmdeploy_ext.spec.matching import in_order_of, lone_low_results
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.results import accept_rate
from mmdeploy_ext.spec.verdict import EQUAL, NOTHING_COMPARED, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.bench.kit.contents import ChainedFrame, Manifest, StoredCase
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.results import SequenceRow, TensorRow
    from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec


# Names the kind of a wrong output: constant, in another order, rounded.


ROUNDED = 5e-3
"""Largest difference, relative to the largest value, that rounded factors (TF32, fp16) explain."""
MOST_AXES, MOST_IMAGES = 5, 4
"""Limits of axes, and of images of a batch, for trying all orders."""
EXACT = 1e-5
"""Largest relative difference that the order of float32 sums explains; beyond it an output is wrong."""


def misfit(array: np.ndarray, tensor: TensorSpec) -> str:
    """Difference of an array's dtype or shape from a graph's tensor, or ''."""
    if array.dtype != np.dtype(tensor.dtype):
        return f'dtype: got {array.dtype}, expected {tensor.dtype}'
    fits = array.ndim == len(tensor.axes) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(tensor.axes, array.shape, strict=True)
    )
    shape = shape_text(array.shape)
    return '' if fits else f'shape: got {shape}, expected {tensor.shape_text()}'


def is_constant(array: np.ndarray) -> bool:
    """Whether an array of floats has several values, all equal and not NaN."""
    return array.size > 1 and array.dtype.kind == 'f' and bool((array == array.flat[0]).all())


def exchanged(expected: np.ndarray, got: np.ndarray) -> str:
    """Describe exchanged images of a batch or exchanged axes, or ''."""
    if expected.ndim != got.ndim or expected.ndim > MOST_AXES or got.dtype.kind != 'f':
        return ''
    if expected.shape == got.shape and 2 <= len(got) <= MOST_IMAGES:
        for order in list(itertools.permutations(range(len(got))))[1:]:  # the first is the order that it has
            if ArrayDistance(got[list(order)], expected).max_rel <= EXACT:
                return f'the images of the batch are in another order: {", ".join(map(str, order))}'
    for axes in list(itertools.permutations(range(got.ndim)))[1:]:
        moved = got.transpose(axes)
        if moved.shape == expected.shape and ArrayDistance(moved, expected).max_rel <= EXACT:
            return f'axes are in another order: {", ".join(map(str, axes))}'
    return ''


def diagnose(expected: np.ndarray, got: np.ndarray) -> str:
    """Describe a wrong output, or ''."""
    if is_constant(got) and not is_constant(expected):
        return f'every value is {got.flat[0]:g}'
    if order := exchanged(expected, got):
        return order
    if expected.shape != got.shape or expected.size < 2 or got.dtype.kind != 'f':
        return ''
    if not (np.isfinite(expected).all() and np.isfinite(got).all()):
        return ''
    distance = ArrayDistance(got, expected)
    if distance.scale > 0 and EXACT < distance.max_rel <= ROUNDED:
        return (
            f"within {100 * distance.max_rel:.2g} % of PyTorch's largest value everywhere, which rounded "
            'factors would explain: check for TF32 or float16'
        )
    return ''


# Judges the frames of a model with a memory, as level 4 of a proof does.


NOTHING = np.zeros(0, np.float32)
LARGEST_DRIFT = 100.0
"""Tolerances by which a free-running float32 memory may be off after a reset: rounding adds up."""


class DriveJudge:
    """Judges the frames of each mode, 'teacher' and 'free', as a drive."""

    def __init__(self, manifest: Manifest, graph: KitGraph, precision: str) -> None:
        self.graph, self.memory = graph, MemorySpec.from_json(manifest.memory)
        tensors = self.memory.tensors.items()
        of_outputs = {name: group for name, group in tensors if name in self.memory.outputs}
        self.memory = dataclasses.replace(self.memory, tensors=of_outputs)  # the rest follows from the frame
        if precision != 'fp32':
            self.memory = self.memory.judged_by(graph.spec)
        bars = bars_of_task(manifest.task, default_bars(precision))
        match = task_module(manifest.task).match_detections
        self.runs = {mode: PairRun(mode, graph.spec, bars, self.memory, match) for mode in MODES}

    def add(self, mode: str, frame: ChainedFrame, case: KitCase, arrays: Mapping[str, np.ndarray]) -> None:
        """Judge one frame of a mode; frames come in order.

        `case` is the case of the last file; `arrays` are all of the engine's outputs of it.
        """
        run, metadata = self.runs[mode], self.graph.metadata
        pose, moment = np.asarray(frame.ego_pose, np.float64), (frame.timestamp_s, frame.scene)
        name = f'frame {frame.name} ({frame.title})'
        try:
            boxes = runtime_of(metadata.family).boxes_of_outputs(metadata, arrays)
        except FAILURES as error:
            run.faults[f'no results: {one_line(error)[:200]}'].append(name)
            return
        of_memory, outputs, states = {source for source, _ in self.graph.spec.state}, [], []
        for tensors, detections in ((case.tensors, case.results[0]), (arrays, boxes)):
            results = {name: array for name, array in tensors.items() if name not in of_memory}
            memory = {name: tensors[output] for name, output in self.memory.outputs.items()}
            outputs.append(StepResult(results, detections, frame.reset))
            states.append(StreamState(memory, pose, *moment))
        run.add(Moment(Frame(NOTHING, NOTHING, NOTHING, pose, *moment, name), *outputs, *states))

    def finish(self) -> list[SequenceRow]:
        """Judgements of the modes that ran, 'teacher' first."""
        if self.runs['free'].bars.cosine is None:
            self._add_drift(self.runs['free'])
        return [run.finish() for run in self.runs.values() if run.series['name'] or run.faults]

    def _add_drift(self, run: PairRun) -> None:
        names, ties, limit = run.series['name'], run.series['ties'], 1.0
        for index, was_reset in enumerate(run.series['reset']):
            limit = 1.0 if was_reset else max(limit, LARGEST_DRIFT)
            limit = np.inf if ties[index] else limit
            for tensor, ratios in run.series['ratios'].items():
                ratio = ratios[index] if index < len(ratios) else None
                if tensor.startswith('memory ') and ratio is not None and ratio > limit:
                    fault = f'the {tensor} differs from the one that PyTorch passes to the next frame'
                    run.faults[fault].append(f'{names[index]} ({ratio:.3g} times its tolerance)')


# Reads an engine's outputs of the cases of a kit, in the formats of engines' tools.


def has_outputs(folder: Path, name: str) -> bool:
    """Whether a folder has NAME.npz, NAME.json or a folder NAME."""
    return any((folder / f'{name}{suffix}').exists() for suffix in ('.npz', '.json', ''))


def read_outputs(
    folder: Path, name: str, spec: GraphSpec, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Outputs of one run of a graph by name.

    Args:
        folder: folder of the outputs of all runs.
        name: name of the run: of a case, '000', or `ChainedFrame.outputs` of a frame, 'chain_000'.
        spec: spec of the graph: dtypes of raw files and JSON files; JSON floats for an integer output stay
            float64.
        shapes: output name -> shape, for raw files.
    """
    archive, listing, single = folder / f'{name}.npz', folder / f'{name}.json', folder / name
    arrays_in_folder = [path for path in sorted(single.glob('*')) if path.suffix in ('.npy', '.bin')]
    stems = [path.stem for path in arrays_in_folder]
    sources = [path for path in (archive, listing) if path.is_file()]
    sources += arrays_in_folder[:1] if len(set(stems)) == len(stems) else arrays_in_folder
    if not sources:
        raise DataError(
            f'{folder}: has no outputs of {name}: expected {name}.npz, {name}.json of trtexec, or '
            f'{name}/NAME.npy or .bin'
        )
    if len(sources) > 1:
        names = ', '.join(str(path.relative_to(folder)) for path in sources)
        raise DataError(f'{folder}: has outputs of {name} twice: {names}; write each run to a new folder')
    will_read('an output of the engine', sources)
    if archive.is_file():
        return load_arrays(archive)
    if listing.is_file():
        return _read_trtexec(listing, spec)
    arrays = {}
    for file in arrays_in_folder:
        if file.suffix == '.npy':
            arrays |= load_arrays(file, name_of_stem(file.stem))
        else:
            arrays[name_of_stem(file.stem)] = _read_raw(file, spec, shapes)
    return arrays


def _read_raw(file: Path, spec: GraphSpec, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    name, content = name_of_stem(file.stem), file.read_bytes()
    if name not in spec.output_names or name not in shapes:
        expected = ', '.join(spec.output_names)
        raise DataError(f'{file}: {name!r} has no known shape; outputs are {expected}; write .npy instead')
    dtype = np.dtype(spec.tensor(name).dtype).newbyteorder('<')
    count = int(np.prod(shapes[name]))
    if len(content) != dtype.itemsize * count:
        advice = "a raw file stores no shape: write .npy if the engine's shape differs"
        if count and len(content) % count == 0 and len(content) // count in (1, 2, 4, 8):
            advice = f'{len(content) // count} bytes per value: write the dtype of the file, or .npy'
        raise DataError(
            f'{file}: has {len(content)} bytes, expected {dtype.itemsize * count} of {dtype.name} '
            f'{list(shapes[name])}; {advice}'
        )
    return np.frombuffer(content, dtype).reshape(shapes[name]).astype(spec.tensor(name).dtype)


def _read_trtexec(file: Path, spec: GraphSpec) -> dict[str, np.ndarray]:
    try:
        entries = parse_json(file.read_text(encoding='utf-8'))
        arrays = {}
        for entry in entries:
            shape = tuple(int(size) for size in str(entry['dimensions']).split('x') if size)
            dtype = spec.tensor(entry['name']).dtype if entry['name'] in spec.output_names else 'float32'
            values = np.asarray(entry['values'], np.float64).reshape(shape)
            with np.errstate(invalid='ignore'):
                array = values.astype(dtype)
            is_cut = array.dtype.kind in 'iub' and not np.array_equal(array, values)  # 0.7 is no label
            arrays[entry['name']] = values if is_cut else array
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DataError(f'{file}: is not what trtexec --exportOutput writes: {one_line(error)}') from error
    return arrays


def check_kit(folder: Path, expected: str) -> bool:
    """Whether a folder has a file `KIT_HASH`; DataError unless its first word is `expected`."""
    path = folder / KIT_HASH
    if path.is_file() and path.read_bytes().split()[:1] != [expected.encode()]:
        raise DataError(f'{path}: these outputs belong to another kit; run the inputs of this one')
    return path.is_file()


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
