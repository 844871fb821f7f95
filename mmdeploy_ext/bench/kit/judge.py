"""Compares an engine's outputs with PyTorch's results in a kit. Needs numpy only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.errors import DataError, UsageError, on_inputs, one_line, shape_text
from mmdeploy_ext.base.files import will_read
from mmdeploy_ext.base.typed_json import parse_json
from mmdeploy_ext.bench.kit.contents import KIT_HASH, KitCase, KitGraph, name_of_stem, read_manifest
from mmdeploy_ext.engines.base import attempt
from mmdeploy_ext.proving.drive_run import MODES, SHORT_DRIVE, Drives
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.subject import Sample, Step, Subject
from mmdeploy_ext.runtime.detect import results_of, runtime_of
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.spec.comparison import failed_row, order_rows
from mmdeploy_ext.spec.matching import LOW, in_order_of, lone_low_results
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.results import Case, accept_rate, bars_of
from mmdeploy_ext.spec.verdict import EQUAL, NOTHING_COMPARED, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mmdeploy_ext.bench.kit.contents import Manifest, StoredCase
    from mmdeploy_ext.proving.drive_run import DriveRun
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.results import SequenceRow, TensorRow
    from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec


def misfit(array: np.ndarray, tensor: TensorSpec) -> str:
    """Difference of an array's dtype or shape from a graph's tensor, or ''."""
    if array.dtype != np.dtype(tensor.dtype):
        return f'dtype: got {array.dtype}, expected {tensor.dtype}'
    fits = array.ndim == len(tensor.axes) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(tensor.axes, array.shape, strict=True)
    )
    shape = shape_text(array.shape)
    return '' if fits else f'shape: got {shape}, expected {tensor.shape_text()}'


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
    kit, outputs = Path(kit), Path(outputs)
    subject = Kit(kit, outputs, precision)
    manifest, frames = subject.manifest, subject.manifest.frames
    is_named = check_kit(outputs, manifest.kit_sha256)
    runs = [*subject.cases, *(frame.outputs for frame in frames)]
    if not any(has_outputs(outputs, run) for run in runs):
        raise DataError(
            f'{outputs}: has no outputs for any input of the kit; expected {runs[0]}.npz or '
            f'{runs[0]}/NAME.bin and so on, as the programs in {kit} write them'
        )
    is_chained = any(has_outputs(outputs, frame.outputs) for frame in frames)
    of_drive = {frame.last_case for frame in frames} if manifest.memory else set()
    subject.given = [(name, name) for name in subject.cases if name not in of_drive]
    if is_chained and not manifest.memory:
        subject.given += [(frame.last_case, frame.outputs) for frame in frames]
    facts = dict(told=told, precision=subject.precision, ran='', inputs=len(subject.cases))
    verdict = Verdict(facts | dict(frames=len(frames) if is_chained else 0), claim=EQUAL)
    verdict.notes += notes_on(manifest, is_named, is_chained)
    cases, sequences = compare(subject)[0], []
    for mode in (MODES if is_chained else MODES[:1]) if manifest.memory else ():
        row, unread = subject.drive(mode)
        cases += unread
        sequences += [row] if row.frames or row.reasons else []
    cases, reason = accept_rate(cases, subject.bars)
    verdict.add_failures(filter(None, [reason]))
    rows = [row for case in cases for row in case.detections]
    if subject.bars.is_float32:
        low, alone = (sum(getattr(row, key) for row in rows) for key in LOW)
        verdict.add_failures(lone_low_results(low, alone))
    verdict.add_outputs(cases, sequences)
    has_values = any(row.matched for row in rows) or any(row.tensors for row in (*cases, *sequences))
    if verdict.passed and not has_values:
        verdict.add_failures([f'{NOTHING_COMPARED}: PyTorch finds nothing in these inputs'])
    return verdict


def notes_on(manifest: Manifest, is_named: bool, is_chained: bool) -> Iterator[str]:
    if not is_named:
        yield 'the outputs have no kit.txt, so it is not certain that they belong to this kit'
    if manifest.teacher_forced:
        yield (
            "the memory is updated outside of the files: every frame ran on PyTorch's memory, so "
            'neither drift nor the code that updates it was tested'
        )
    if manifest.frames and not is_chained:
        first = manifest.frames[0].outputs
        yield f'{len(manifest.frames)} frames in sequence: no {first} and so on; not tested'


class Kit(Subject):
    """PyTorch's results in a kit, and an engine's outputs in a folder; `given`: cases and names of runs."""

    again, is_foreign = -1, True

    def __init__(self, folder: Path, outputs: Path, precision: str | None) -> None:
        self.folder, self.outputs, self.manifest = folder, outputs, read_manifest(folder)
        if not outputs.is_dir():
            got = 'is a file' if outputs.exists() else 'no such folder'
            raise DataError(f'{outputs}: {got}; expected the folder that the engine wrote outputs to')
        self.graphs = {entry.name: KitGraph.from_json(entry) for entry in self.manifest.graphs}
        self.cases = {entry.name: entry for entry in self.manifest.cases}
        precisions = [graph.metadata.precision for graph in self.graphs.values() if graph.metadata]
        of_files = next((name for name in precisions if name != 'fp32'), 'fp32')
        # a file for libspconv has no precision in its metadata
        self.precision = precision or self.manifest.precision or of_files
        self.bars, self.task = bars_of(self.precision), self.manifest.task or ''

    def sample(self, entry: tuple[str, str], index: int, mode: str) -> Sample:
        name, run = entry
        stored = self.cases[name]
        metadata = self.graphs[stored.graph].metadata
        case = KitCase.read(self.folder, stored, metadata.family if metadata else '')
        return Sample(f'{run} {case.title}', (case, run), titles=case.images)

    def want(self, sample: Sample, state: Any) -> Step:
        case, _ = sample.data
        return Step(case.tensors, case.results or None, rounding=case.rounding)

    def got(self, sample: Sample, state: Any) -> Step:
        """Read a run, and decode its outputs; nothing of unreadable ones is compared."""
        case, run = sample.data
        metadata = self.graphs[case.graph].metadata
        arrays, rows = self._read(self.cases[case.name], run)
        if not case.tensors and not case.results:
            rows.append(failed_row('all outputs', 'the kit has no PyTorch results to compare with'))
        if rows or not case.results:
            return Step({} if rows else arrays, rows=rows)
        results = attempt(lambda: self._results(case, arrays))
        return Step(arrays, results, rows=promised_rows(metadata, arrays))

    def _results(self, case: KitCase, arrays: Mapping[str, np.ndarray]) -> Sequence[Any]:
        metadata = self.graphs[case.graph].metadata
        runtime = runtime_of(metadata.family)
        if hasattr(runtime, 'boxes_of_outputs'):
            results = [runtime.boxes_of_outputs(metadata, arrays)]
        else:
            feeds = metadata.spec.normalised({**case.inputs, **case.beside})
            results = results_of(metadata.family, metadata, arrays, feeds)
        if len(results) != len(case.results):
            raise DataError(f'got results of {len(results)} images, expected {len(case.results)}')
        return results

    def align(self, sample: Sample, want: Step, got: Step) -> tuple[Step, Step, Sequence[TensorRow]]:
        """Order common rows; leave out outputs without a value on both sides, which show nothing."""
        spec, arrays = self.graphs[sample.data[0].graph].spec, got.tensors
        names = want.tensors.keys() if arrays else set()
        if names and self.manifest.rows:
            arrays = in_order_of(want.tensors, arrays, self.manifest.rows, self.manifest.tolerance)
        empty = {n for n in names if not want.tensors[n].size and arrays[n].shape == want.tensors[n].shape}
        outputs = tuple(tensor for tensor in spec.outputs if tensor.name not in empty)
        self.spec = dataclasses.replace(spec, outputs=outputs)
        want, got = (
            dataclasses.replace(step, tensors={n: side[n] for n in side if n in names and n not in empty})
            for step, side in ((want, want.tensors), (got, arrays))
        )
        return want, got, ()

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: Case) -> Case:
        """Of wrong tensors no results are matched."""
        wrong = not isinstance(got, Exception) and any(
            not row.passed and row not in got.rows for row in case.tensors
        )
        return dataclasses.replace(case, detections=()) if wrong else case

    def drive(self, mode: str) -> tuple[SequenceRow, list[Case]]:
        """Judge the frames of one mode as a drive; return it, and cases of outputs of a wrong form."""
        graph, memory = [*self.graphs.values()][-1], MemorySpec.from_json(self.manifest.memory)
        of_outputs = {name: group for name, group in memory.tensors.items() if name in memory.outputs}
        memory = dataclasses.replace(memory, tensors=of_outputs)  # the rest follows from the frame
        if not self.bars.is_float32:
            memory = memory.judged_by(graph.spec)
        of_memory = {source for source, _ in graph.spec.state}
        frames, sides, cases = [], (StoredFrames(), StoredFrames()), []
        for entry in self.manifest.frames:
            run = entry.last_case if mode == 'teacher' else entry.outputs
            sample = self.sample((entry.last_case, run), 0, mode)
            want, got = self.want(sample, None), self.got(sample, None)
            rows = [row for row in got.rows if got.results is None]
            if isinstance(got.results, Exception):
                rows.append(failed_row('all outputs', f'no results: {one_line(got.results)[:200]}'))
            if rows:
                cases.append(Case(sample.name, '', False, tuple(rows)))
                continue
            pose = np.asarray(entry.ego_pose, np.float64)
            moment = pose, entry.timestamp_s, entry.scene
            name = f'frame {entry.name} ({entry.title})'
            frames.append(Frame(NOTHING, NOTHING, NOTHING, *moment, name))
            for side, step in zip(sides, (want, got), strict=True):
                outputs = {n: array for n, array in step.tensors.items() if n not in of_memory}
                state = StreamState({n: step.tensors[o] for n, o in memory.outputs.items()}, *moment)
                side.results[name] = StepResult(outputs, step.results[0], entry.reset), state
        drive = Drives(
            sides[0],
            {mode: sides[1]},
            graph.spec,
            memory=memory,
            length=SHORT_DRIVE,
            bars=self.bars,
            task=self.task,
            frames=frames,
            stored=True,
        )
        compare(drive)
        if mode == 'free' and self.bars.is_float32:
            add_drift(drive.runs[mode])
        return drive.finish()[mode], cases

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


class StoredFrames:
    """A stepper that returns stored results; `results` has the result and the memory of each frame."""

    def __init__(self) -> None:
        self.results: dict[str, tuple[StepResult, StreamState]] = {}
        self.state: StreamState | None = None

    def reset(self) -> None:
        self.state = None

    def step(self, frame: Frame) -> StepResult:
        result, self.state = self.results[frame.name]
        return result


NOTHING = np.zeros(0, np.float32)
LARGEST_DRIFT = 100.0
"""Tolerances by which a free-running float32 memory may be off after a reset: rounding adds up."""


def add_drift(run: DriveRun) -> None:
    """Fail a free memory that is off by more than rounding adds up to."""
    names, ties, limit = run.series['name'], run.series['ties'], 1.0
    for index, was_reset in enumerate(run.series['reset']):
        limit = 1.0 if was_reset else max(limit, LARGEST_DRIFT)
        limit = np.inf if ties[index] else limit
        for tensor, ratios in run.series['ratios'].items():
            ratio = ratios[index] if index < len(ratios) else None
            if tensor.startswith('memory ') and ratio is not None and ratio > limit:
                fault = f'the {tensor} differs from the one that PyTorch passes to the next frame'
                run.faults[fault].append(f'{names[index]} ({ratio:.3g} times its tolerance)')
