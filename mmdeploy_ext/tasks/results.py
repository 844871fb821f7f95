"""Results of single comparisons of a proof, as plain data."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from mmdeploy_ext.contract.comparison import TensorRow
    from mmdeploy_ext.graph.signature import GraphDifference


AS_WRITTEN, EDITED, QUANTIZED = 'as written', 'edited, not compared', 'quantized, not compared'
"""Why a graph is not compared with a fresh export; INT8 files are judged by their outputs."""
NODE_KINDS = ('node', 'attribute', 'initializer', 'wiring')
"""Kinds of differences that are at a node."""
SHOWN = 3
"""Differences, rules, methods or lines that one text lists of each kind; the JSON file has all."""


@dataclasses.dataclass(frozen=True)
class GraphResult:
    """Comparison of the graph of one file with a fresh export.

    Attributes:
        name: name of the graph of a model of frames or sweeps; '' if the model is one file.
        nodes: number of nodes of the main graph that are no Constant.
        equal: whether it is the graph of a fresh export.
        differences: differences from the fresh export.
        left_out: why it is not compared, `AS_WRITTEN`, `EDITED` or `QUANTIZED`; or ''.
        error: why it cannot be compared.
    """

    name: str
    nodes: int
    equal: bool
    differences: tuple[GraphDifference, ...] = ()
    left_out: str = ''
    error: str = ''

    @property
    def passed(self) -> bool:
        return self.equal or bool(self.left_out)

    @property
    def text(self) -> str:
        name = f'{self.name}: ' if self.name else ''
        if self.equal:
            result = f'equal to a fresh export ({self.nodes:,} nodes)'
        elif self.left_out or self.error:
            result = self.left_out or self.error
        else:
            places = {entry.where for entry in self.differences}
            count = len(places) + sum(entry.more for entry in self.differences)
            kind = 'node' if all(entry.kind in NODE_KINDS for entry in self.differences) else 'place'
            differ = f'{kind} differs' if count == 1 else f'{kind}s differ'
            texts = [entry.text for entry in self.differences]
            result = f'{count} {differ} from a fresh export: {first_lines(texts)}'
        return f'{name}{result}'


def first_lines(texts: Sequence[str]) -> str:
    """Return the first `SHOWN` texts in one line, and how many more there are."""
    suffix = f'; and {len(texts) - SHOWN} more' if len(texts) > SHOWN else ''
    return '; '.join(texts[:SHOWN]) + suffix


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement about a file that is true or not.

    Attributes:
        name: the statement.
        passed: whether it is true.
        detail: what was read and what was expected, or ''.
    """

    name: str
    passed: bool
    detail: str = ''


@dataclasses.dataclass(frozen=True)
class PreprocessingDifference:
    """One value of a sample for which the rule in a file and the config's test pipeline differ.

    Attributes:
        sample: title of the picture, frame or sweep.
        name: name of the value, such as 'tensor', 'img_shape' or 'lidar2img'.
        got: the value by the rule in the file, in words.
        expected: the value by the test pipeline, in words.
    """

    sample: str
    name: str
    got: str
    expected: str

    @property
    def text(self) -> str:
        return f'{self.sample}: {self.name}: got {self.got}, expected {self.expected}'


@dataclasses.dataclass(frozen=True)
class PreprocessingResult:
    """Samples prepared by the rule in a file, compared with the config's test pipeline.

    Attributes:
        samples: titles of the samples that were compared.
        unit: 'picture', 'frame' or 'sweep'.
        differences: every value that differs.
        note: how the pipeline was changed to the options of the file, e.g. 'at 608x608', and what samples
            lack.
        error: why the pipeline or the rule could not run.
        source: reference of the rule.
    """

    samples: tuple[str, ...]
    unit: str = 'picture'
    differences: tuple[PreprocessingDifference, ...] = ()
    note: str = ''
    error: str = ''
    source: str = "the config's test pipeline"

    @property
    def passed(self) -> bool:
        return bool(self.samples) and not self.differences and not self.error

    @property
    def text(self) -> str:
        pipeline = f'{self.source} {self.note}'.strip()
        if self.error:
            return f'not compared with {pipeline}: {self.error}'
        if not self.samples:
            return f'no {self.unit} was compared with {pipeline}'
        if not self.differences:
            plural = 's' if len(self.samples) > 1 else ''
            return f'equal to {pipeline} ({len(self.samples)} {self.unit}{plural})'
        texts = [difference.text for difference in self.differences]
        return f'differs from {pipeline}: {first_lines(texts)}'


@dataclasses.dataclass(frozen=True)
class DetectionRow:
    """Detections of one image or frame, ONNX against PyTorch, matched by class and place.

    Attributes:
        image: title of the row.
        reference: number of PyTorch's detections at or above the score threshold.
        matched: number of these with a partner within the bars.
        missing: number of these without a partner.
        extra: number of the engine's detections without a partner, from the threshold plus the score bar on.
        worst_iou: smallest IoU of a pair that counts; 1.0 without one, and of tasks that match by distance.
        worst_score: largest score difference of a pair that counts.
        passed: whether nothing is missing, extra or outside; below float32 the rate of all cases decides.
        reason: the fault, or ''.
        outside: number of pairs of one class outside the bars.
        worst_distance: largest distance of a pair that counts, metres; None of tasks that match by IoU.
        broken: whether the results could not be compared; all are then missing and extra.
        low: number of results of both sides below the threshold, judged over the whole proof.
        low_alone: number of these without a partner within the bars.
        alone: a line for each of the first results without a partner.
        excused: a line for each pair of results that are one choice among equal scores.
    """

    image: str
    reference: int
    matched: int
    missing: int
    extra: int
    worst_iou: float
    worst_score: float
    passed: bool
    reason: str = ''
    outside: int = 0
    worst_distance: float | None = None
    broken: bool = False
    low: int = 0
    low_alone: int = 0
    alone: tuple[str, ...] = ()
    excused: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """One input of both engines, and the comparison of their outputs.

    Attributes:
        name: e.g. 'traced input' or 'other size, batch 2'.
        input_shape: shape of the input as text, '1x3x608x608', or ''.
        traced: whether the exporter saw this input.
        tensors: rows of tensors; none of forms whose outputs are results.
        detections: rows of results, one per image.
        substituted: results of the user's test path on the file's own tensors, against those of the file.
        inner: boxes between the stages of the file, such as proposals, against those of the user's code.
        notes: remarks for the reader; no failure.
        counts: name of a limit -> the most that the input had of what it limits.
    """

    name: str
    input_shape: str
    traced: bool
    tensors: tuple[TensorRow, ...] = ()
    detections: tuple[DetectionRow, ...] = ()
    substituted: tuple[DetectionRow, ...] = ()
    inner: tuple[DetectionRow, ...] = ()
    notes: tuple[str, ...] = ()
    counts: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(row.passed for row in (*self.tensors, *self.detections, *self.substituted, *self.inner))

    @property
    def failures(self) -> list[str]:
        rows = [(row.tensor, row) for row in self.tensors] + [(row.image, row) for row in self.detections]
        rows += [(row.image, row) for row in self.inner]
        rows += [(f"{row.image}, by the file's own tensors", row) for row in self.substituted]
        return [f'{self.name}: {title}: {row.reason}' for title, row in rows if not row.passed]

    def to_json(self) -> dict[str, Any]:
        """Return all attributes, and `passed`."""
        return dataclasses.asdict(self) | dict(passed=self.passed)


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """One metric of one data set, by PyTorch and by the ONNX engine.

    Attributes:
        name: name of the metric, e.g. 'bbox_mAP'.
        reference: value by PyTorch; NaN if it gave none.
        candidate: value by the engine; NaN if it gave none.
        bar: largest absolute difference that passes.
        passed: whether they differ by no more, or are both NaN.
    """

    name: str
    reference: float
    candidate: float
    bar: float
    passed: bool

    @property
    def difference_text(self) -> str:
        sides = (('PyTorch', self.reference), ('the engine', self.candidate))
        if missing := [title for title, value in sides if math.isnan(value)]:
            return f'no value by {" and by ".join(missing)} (bar {self.bar:g})'
        return f'difference {abs(self.candidate - self.reference):.5f} (bar {self.bar:g})'


MODE_TITLES = dict(free='free-running', teacher='teacher-forced')
"""Mode of a `SequenceRow` -> its name in tables."""


@dataclasses.dataclass(frozen=True)
class SequenceRow:
    """One drive through both engines, frame by frame.

    Attributes:
        mode: 'teacher': before each frame the candidate gets the reference's memory; 'free': each keeps its
            own, and tensors only have to be comparable.
        frames: number of frames that both engines ran.
        resets: number of times that the reference's memory was emptied after the first frame.
        time_jumps: number of gaps of at least twice the usual one within a scene.
        reference, matched, missing, extra, outside: counts of `DetectionRow`, of all frames.
        match_rate: share of `matched` in the longer of both lists; None when there was nothing to match.
        match_bar: smallest rate that passes.
        worst_distance: largest distance of a pair that counts, metres, or None.
        worst_score: largest score difference of a pair that counts.
        ties: memory rows and queries that differ because scores were equal within rounding; not errors.
        tied_frames: number of frames with a tie.
        affected_frames: number of frames whose memory holds rows of a tie.
        taken_over: frames after which a free-running candidate went on with the reference's memory.
        low, low_alone: counts of `DetectionRow`, of all frames.
        tensors: the worst row per column group of the outputs and of the memory.
        reasons: why the run fails; empty when it passes.
        series: figures of each frame, lists with an entry per frame: `name`, `reset`, `gap_s` (None for the
            first frame of a scene), `reference`, `matched`, `extra`, `ties`; `errors` and `ratios` (error
            over tolerance) are dicts of tensor -> list.
    """

    mode: str
    frames: int
    resets: int
    time_jumps: int
    reference: int
    matched: int
    missing: int
    extra: int
    outside: int
    match_rate: float | None
    match_bar: float
    worst_distance: float | None
    worst_score: float
    ties: int = 0
    tied_frames: int = 0
    affected_frames: int = 0
    taken_over: int = 0
    low: int = 0
    low_alone: int = 0
    tensors: tuple[TensorRow, ...] = ()
    reasons: tuple[str, ...] = ()
    series: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        return MODE_TITLES.get(self.mode, self.mode)

    @property
    def passed(self) -> bool:
        return not self.reasons


@dataclasses.dataclass(frozen=True)
class Pair:
    """One sample with both engines' results, for pictures of it.

    Attributes:
        title: title of the sample.
        background: a picture (h, w, 3) uint8 BGR; pictures of all cameras (N, h, w, 3); points (P, D) float32
            in the LiDAR frame; None if the results are dense maps.
        reference: PyTorch's results of the family's task, or a map (C, H, W).
        candidate: the engine's, of the same type.
        engine: its name in titles.
        lidar2img: (N, 4, 4) float64, LiDAR frame to pixels of the pictures of all cameras; else None.
        points: (P, D) float32 in the LiDAR frame, beside pictures of cameras; else None.
    """

    title: str
    background: np.ndarray | None
    reference: Any
    candidate: Any
    engine: str = 'ONNX Runtime'
    lidar2img: np.ndarray | None = None
    points: np.ndarray | None = None


def failed_detections(title: str, expected: Any, error: Exception) -> DetectionRow:
    """Return the row of an image for which an error was raised; all of PyTorch's are missing."""
    reason = f'no detections: {one_line(error)[:200]}'
    return DetectionRow(title, len(expected), 0, len(expected), 0, 0.0, 1.0, False, reason, broken=True)
