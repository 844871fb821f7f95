"""The share of PyTorch's results kept by changed files, by half precision's bars, on a CPU."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.engines.base import attempt
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.graph.io import files as graph_files
from mmdeploy_ext.graph.passes.precision import with_fp16_metadata
from mmdeploy_ext.proving.drive import NearOrigin, with_moment
from mmdeploy_ext.proving.frames import open_runner, read_files
from mmdeploy_ext.proving.pictures import open_backend, picture_inputs, read_picture_file, results_of_file
from mmdeploy_ext.proving.references import InputReference
from mmdeploy_ext.quantize.planned import Kept
from mmdeploy_ext.runtime.detections import with_labels
from mmdeploy_ext.tasks import match
from mmdeploy_ext.util.errors import UsageError
from mmdeploy_ext.verdict.bars import HALF
from mmdeploy_ext.verdict.ties import numbers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import onnx

    from mmdeploy_ext.detector import Detector
    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.verdict.results import MetricRow

    Candidates = Callable[[Sequence[str], contextlib.ExitStack], Iterator[Any]]
    """Files -> per sample: PyTorch's results, and a function that runs the files."""

LIMITS = ('max_per_img', 'max_num', 'post_max_size')
"""Names of the largest number of results."""


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


def results_kept(
    detector: Detector, kind: str, paths: Sequence[str], samples: Collection[Any], engine: Mapping[str, Any]
) -> Callable[[Sequence[str]], Kept]:
    """Run PyTorch on the samples once; return a function from files of this export to the results they keep.

    Frames run with the files' own memory. UsageError: a sparse backbone alone.
    """
    if kind == 'backbone':
        raise UsageError('a sparse backbone has no results of its own; give the export of the whole model')
    of_kind = _of_pictures if kind == 'images' else _of_frames
    candidates, limits = of_kind(detector, paths, samples, engine)
    task = detector.family.task

    def kept(paths: Sequence[str]) -> Kept:
        matched = total = 0
        with contextlib.ExitStack() as stack:
            for expected, run in candidates(paths, stack):
                found = attempt(run)
                if isinstance(found, Exception):
                    found = [result[:0] for result in expected]
                for reference, candidate in zip(expected, found, strict=True):
                    row = kept_of(task, reference, candidate, limits)
                    matched, total = matched + row.matched, total + row.total
        return Kept(matched, total)

    return kept


def kept_of(task: str, reference: Any, candidate: Any, limits: Mapping[str, float]) -> Kept:
    """Return how many results of one sample are kept; those that may drop out of a full list do not count."""
    tied = functools.partial(may_drop_out, reference, candidate, limits)
    row = match(task, 'results', reference, candidate, HALF, tied=tied)
    return Kept(row.matched, row.matched + row.missing + row.outside)


def may_drop_out(
    reference: Any,
    candidate: Any,
    limits: Mapping[str, float],
    missing: Sequence[int],
    _: Sequence[int],
    outside: Mapping[int, int],
) -> list[tuple[int, None]]:
    """Return results that may, within the bar of scores, fall below the last of a full list.

    `missing` have no partner there, `outside` (row -> column) one beyond the bars.
    """
    end = limits.get('score_thr', 0.0)
    if len(candidate.scores) in [limits.get(name) for name in LIMITS]:
        end = max(end, min(candidate.scores.min(), reference.scores.min(initial=1.0)))
    return [(row, None) for row in (*missing, *outside) if reference.scores[row] <= end + HALF.score]


def _of_pictures(
    detector: Detector, paths: Sequence[str], pictures: Collection[Any], engine: Mapping[str, Any]
) -> tuple[Candidates, dict[str, float]]:
    file, options = read_picture_file(detector, paths[0])
    entries, _ = picture_inputs(detector, file, options, list(pictures))
    references = [
        entry if isinstance(entry, InputReference) else InputReference(detector, entry) for entry in entries
    ]

    def candidates(paths: Sequence[str], stack: contextlib.ExitStack) -> Iterator[Any]:
        changed = dataclasses.replace(file, path=paths[0])
        backend = stack.enter_context(open_backend({'engine': 'onnxruntime', **engine}, changed))
        for reference in references:
            yield reference.results, functools.partial(_picture_results, reference, backend)

    return candidates, dict(numbers_of(file.metadata.postprocess.to_json()))


def _picture_results(reference: InputReference, backend: Backend) -> Sequence[Any]:
    outputs = with_labels(backend.infer(reference.feeds_of(backend.metadata)))
    return results_of_file(reference, backend.metadata, outputs)


def _of_frames(
    detector: Detector, paths: Sequence[str], samples: Collection[Any], engine: Mapping[str, Any]
) -> tuple[Candidates, dict[str, float]]:
    files, options = read_files(detector, paths)
    contract = contract_of(detector.family, options)
    reference = contract.reference(detector.model)
    frames = list(samples)
    if detector.family.memory:
        frames = [with_moment(frame, index) for index, frame in enumerate(NearOrigin(frames))]
    expected = [reference.step(frame).detections for frame in frames]

    def candidates(paths: Sequence[str], stack: contextlib.ExitStack) -> Iterator[Any]:
        changed = [dataclasses.replace(file, path=path) for file, path in zip(files, paths, strict=True)]
        runner = open_runner(contract, changed, engine, stack)
        for frame, result in zip(frames, expected, strict=True):
            yield [result], lambda frame=frame: [runner.step(frame).detections]

    return candidates, dict(numbers_of(files[-1].metadata.postprocess.to_json()))


def metric_kept(rows: Sequence[MetricRow], name: str) -> Kept:
    """Return a data set metric, 0 without results; UsageError: the evaluator has no such number."""
    row = next((row for row in rows if row.name == name), None)
    if row is None:
        raise UsageError(f'--keep-metric {name}: expected one of {", ".join(row.name for row in rows)}')
    return Kept(0.0 if math.isnan(row.candidate) else row.candidate, row.reference, name)
