"""The share of PyTorch's results kept by changed files, by half precision's bars, on a CPU."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import math
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import DataError, UsageError
from mmdeploy_ext.engines.base import record_runs
from mmdeploy_ext.exporting.int8 import digest
from mmdeploy_ext.exporting.precision_plan import KeptResults
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.graphs.io import files as graph_files
from mmdeploy_ext.graphs.passes.precision import with_fp16_metadata
from mmdeploy_ext.proving.explain import matched
from mmdeploy_ext.proving.frames import NearOrigin, Sweeps, open_runner, open_sides, read_files
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.pictures import (
    InputReference,
    Pictures,
    input_of,
    open_backend,
    picture_inputs,
    read_picture_file,
    results_of_file,
)
from mmdeploy_ext.proving.subject import Sample, Step, Subject
from mmdeploy_ext.runtime.detect import make_feeds, prepare
from mmdeploy_ext.runtime.detections import with_labels
from mmdeploy_ext.runtime.tasks import match_bars
from mmdeploy_ext.spec.results import HALF

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import numpy as np
    import onnx

    from mmdeploy_ext.families.contracts import Contract
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.file_checks import ExportedFile
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.results import Case, DetectionRow, MetricRow

    Rows = Callable[[Sequence[str], contextlib.ExitStack], 'Kept']
    """Files -> the subject of their results; the stack closes its engines."""


def on_files(
    paths: Sequence[str], models: Mapping[str, onnx.ModelProto], judge: Callable[[Sequence[str]], Any]
) -> Any:
    """Replace files of one export by `models` (path -> graph); judge them."""
    with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
        if len(paths) > 1:
            for path in Path(paths[0]).parent.iterdir():
                if path.is_file() and str(path) not in models:
                    shutil.copy(path, folder)
        for path, model in models.items():
            graph_files.save(with_fp16_metadata(model, False, ()), Path(folder) / Path(path).name)
        return judge([str(Path(folder) / Path(path).name) for path in paths])


def rows_judged(rows_of: Rows, paths: Sequence[str]) -> KeptResults:
    """Return the results that files of an export keep on samples; `rows_of` is from `Kind.rows_kept`."""
    with contextlib.ExitStack() as stack:
        cases, _, _ = compare(rows_of(paths, stack))
    rows = [row for case in cases for row in case.detections]
    return dataclasses.replace(kept_of(rows), samples=len(cases))


class Kept(Subject):
    """Results of PyTorch, which ran once, and of changed files; by half precision's bars, with ties.

    `given`: titles, PyTorch's results, what computes them again, and what runs the files.
    """

    again, bars = -1, HALF

    def __init__(self, like: Subject, given: Sequence[tuple[Any, ...]]) -> None:
        """Take task, settings and module of a subject."""
        self.task, self.settings, self.module, self.given = like.task, like.settings, like.module, given

    def sample(self, entry: tuple[Any, ...], index: int, mode: str) -> Sample:
        titles, *run = entry
        return Sample(titles[0], run, titles=titles)

    def want(self, sample: Sample, state: Any) -> Step:
        return Step()

    def got(self, sample: Sample, state: Any) -> Step:
        *_, run = sample.data
        return Step(facts=dict(results=run()))

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: Case) -> Case:
        """Match here: the loop excuses no ties below float32."""
        expected, again, _ = sample.data
        results = [one[:0] for one in expected] if isinstance(got, Exception) else got.facts['results']
        rows = matched(self, sample.titles, expected, results, again, **match_bars(self.task, HALF))
        return dataclasses.replace(case, detections=rows)


def kept_of(rows: Sequence[DetectionRow]) -> KeptResults:
    """Results that are kept, of all that either side has."""
    matched = sum(row.matched for row in rows)
    lost = sum(row.missing + row.extra + row.outside for row in rows)
    return KeptResults(matched, matched + lost, ties=tuple(tie for row in rows for tie in row.excused))


def divided(samples: Sequence[Any], scenes: Sequence[Any] = ()) -> tuple[list[Any], list[Any]]:
    """Samples for a search and for its result: every other one, or every other scene; of one scene halves."""
    groups = [[sample] for sample in samples]
    if scenes:
        pairs = itertools.groupby(zip(scenes, samples, strict=True), key=lambda pair: pair[0])
        groups = [[sample for _, sample in group] for _, group in pairs]
    if len(groups) == 1:
        middle = (len(samples) + 1) // 2
        groups = [[*samples[:middle]], [*samples[middle:]]]
    parts = [*itertools.chain(*groups[::2])], [*itertools.chain(*groups[1::2])]
    if not all(parts):
        raise DataError(
            f'{len(samples)} samples outside of the calibration: a plan is searched on some and its results '
            'are counted on others; pass at least two others (--images, --frames)'
        )
    return parts


def rows_of_pictures(
    detector: Detector,
    paths: Sequence[str],
    pictures: Collection[Any],
    engine: Mapping[str, Any],
    seen: Collection[bytes],
) -> list[Rows]:
    file, options = read_picture_file(detector, paths[0])
    metadata = file.metadata

    def is_new(picture: np.ndarray) -> bool:
        feeds = make_feeds(prepare(metadata, picture), metadata)
        return not {*map(digest, metadata.spec.rounded(feeds).values())}.intersection(seen)

    pictures = {digest(picture): (title, picture) for title, picture in pictures}
    pictures = [one for one in pictures.values() if not seen or is_new(one[1])]
    parts = divided(pictures) if len(pictures) != 1 else [pictures]
    inputs = [picture_inputs(detector, file, options, part)[0] for part in parts]
    if len(inputs) == 1:  # views of one picture
        inputs = divided(inputs[0])
    found, used = [], set()
    for entries in inputs:
        references = []
        for entry in entries:
            digests = {digest(image.tensor) for image in input_of(entry).images}
            if digests <= used:  # a plain image, of both
                continue
            used |= digests
            reference = entry if isinstance(entry, InputReference) else InputReference(detector, entry)
            references.append((reference, reference.results, functools.cache(reference.run)))
        found.append(functools.partial(_of_pictures, file, engine, references, detector))
    return found


def _of_pictures(
    file: ExportedFile,
    engine: Mapping[str, Any],
    references: Sequence[tuple[InputReference, Sequence[Any], Callable[[], Any]]],
    detector: Detector,
    paths: Sequence[str],
    stack: contextlib.ExitStack,
) -> Kept:
    changed = dataclasses.replace(file, path=paths[0])
    backend = stack.enter_context(open_backend({'engine': 'onnxruntime', **engine}, changed))

    def run(reference: InputReference) -> Sequence[Any]:
        outputs = with_labels(backend.infer(reference.feeds_of(backend.metadata)))
        return results_of_file(reference, backend.metadata, outputs)

    given = [
        ([title for title, _ in reference.input.sources], *expected, functools.partial(run, reference))
        for reference, *expected in references
    ]
    return Kept(Pictures(detector, backend), given)


def rows_of_frames(
    detector: Detector,
    paths: Sequence[str],
    samples: Collection[Any],
    engine: Mapping[str, Any],
    seen: Collection[bytes],
) -> list[Rows]:
    files, options = read_files(detector, paths)
    contract = contract_of(detector.family, options)
    has_memory = bool(detector.family.memory_spec(files[-1].metadata.postprocess).tensors)
    frames = [*NearOrigin(samples, with_moments=True)]
    if seen:
        frames = _unseen(frames, contract, files, engine, seen)
    found = []
    for part in divided(frames, [frame.scene_token for frame in frames] if has_memory else ()):
        reference = contract.reference(detector.model)
        expected = [[reference.step(frame).detections] for frame in part]

        def again(frame: Any, reference: Any = reference) -> list[Any]:
            return [reference.step(frame).detections]

        # another step would change a memory
        runs = [functools.cache(functools.partial(again, frame)) for frame in part]
        if has_memory:
            runs = [functools.partial(copy.copy, results) for results in expected]
        rows = [*zip(part, expected, runs, strict=True)]
        found.append(functools.partial(_of_frames, detector, options, files, engine, rows))
    return found


def _of_frames(
    detector: Detector,
    options: Options,
    files: Sequence[ExportedFile],
    engine: Mapping[str, Any],
    references: Sequence[tuple[Any, Any, Callable[[], Any]]],
    paths: Sequence[str],
    stack: contextlib.ExitStack,
) -> Kept:
    changed = [dataclasses.replace(file, path=path) for file, path in zip(files, paths, strict=True)]
    sides = open_sides(detector, changed, options, engine, stack)

    def run(frame: Any) -> Sequence[Any]:
        return [sides.runner.step(frame).detections]

    given = [(['results'], *expected, functools.partial(run, frame)) for frame, *expected in references]
    return Kept(Sweeps(sides, sides.reference, ()), given)


def _unseen(
    frames: Sequence[Any],
    contract: Contract,
    files: Sequence[ExportedFile],
    engine: Mapping[str, Any],
    seen: Collection[bytes],
) -> list[Any]:
    """Frames whose inputs of the files are not in `seen`."""
    found = []
    with contextlib.ExitStack() as stack:
        runner = open_runner(contract, files, engine, stack)
        for frame in frames:
            with record_runs() as runs:
                runner.step(frame)
            if not {digest(array) for run in runs for array in run.inputs.values()}.intersection(seen):
                found.append(frame)
    return found


def metric_kept(rows: Sequence[MetricRow], name: str) -> KeptResults:
    """Return a data set metric, 0 without results; UsageError: the evaluator has no such number."""
    row = next((row for row in rows if row.name == name), None)
    if row is None:
        raise UsageError(f'--keep-metric {name}: expected one of {", ".join(row.name for row in rows)}')
    return KeptResults(0.0 if math.isnan(row.candidate) else row.candidate, row.reference, name)
