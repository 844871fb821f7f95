"""Results of single comparisons of a proof, as plain data.

A proof has levels: 1 compares a file's graph and metadata with a fresh export, the config and the checkpoint;
2 its tensors with PyTorch's; 3 its results (boxes, masks); 4 both over a drive, frame by frame; 5 the metrics
of a data set.
"""

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
"""Reasons why a graph is not compared with a fresh export: it has just been exported, the user says that it
was edited on purpose, or it is INT8, which is judged by its outputs."""
NODE_KINDS = ('node', 'attribute', 'initializer', 'wiring')
"""Kinds of differences that are at a node."""
SHOWN = 3
"""Largest number of differences, rules, methods, lines or parts of code that one text lists of each kind.

The JSON file has all differences; nodes that differ alike, as they read one constant, are one of them.
"""


@dataclasses.dataclass(frozen=True)
class GraphResult:
    """Level 1 of the graph of one file.

    Attributes:
        name: name of the graph of a model of frames or sweeps; '' of others, which are one file.
        nodes: number of nodes of the main graph that are no Constant.
        equal: whether it is the graph of a fresh export, which computes the same for every input.
        differences: from the fresh export; there are some if both were compared and are not equal.
        left_out: why it is not compared, `AS_WRITTEN`, `EDITED` or `QUANTIZED`; '' if it has to be.
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
        """Whether the graph is equal, or need not be compared."""
        return self.equal or bool(self.left_out)

    @property
    def text(self) -> str:
        """The first line of the verdict.

        If it differs, this says how many nodes (or places) do, and lists the first differences, of which one
        node may have several.
        """
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


def first_lines(texts: Sequence[str], limit: int = SHOWN) -> str:
    """Return the first `limit` texts in one line, and how many more there are."""
    suffix = f'; and {len(texts) - limit} more' if len(texts) > limit else ''
    return '; '.join(texts[:limit]) + suffix


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement about a file that is true or not (level 1).

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
        name: name of the value, such as 'tensor', 'img_shape', 'lidar2img' or 'input images'.
        got: the value by the rule in the file's metadata, in words.
        expected: the value by the config's test pipeline, in words.
    """

    sample: str
    name: str
    got: str
    expected: str

    @property
    def text(self) -> str:
        """The difference as one line."""
        return f'{self.sample}: {self.name}: got {self.got}, expected {self.expected}'


@dataclasses.dataclass(frozen=True)
class PreprocessingResult:
    """Samples as the rule in the file's metadata prepares them, compared with the config's test pipeline.

    Both start from the same files on disk: the pipeline with its own reader, the rule with the one that
    `mm2onnx run` uses.

    Attributes:
        samples: titles of the samples that were compared.
        unit: name of one sample: 'picture', 'frame' or 'sweep'.
        differences: every value that differs.
        note: how the pipeline was changed to the options of the file, e.g. 'at 608x608', and which values the
            samples lack, so that they were not compared.
        error: why the pipeline or the rule could not run at all.
        source: name of what the rule is compared with, for the text.
    """

    samples: tuple[str, ...]
    unit: str = 'picture'
    differences: tuple[PreprocessingDifference, ...] = ()
    note: str = ''
    error: str = ''
    source: str = "the config's test pipeline"

    @property
    def passed(self) -> bool:
        """Whether at least one sample was compared, and every value was equal."""
        return bool(self.samples) and not self.differences and not self.error

    @property
    def text(self) -> str:
        """The line of the verdict."""
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
    """Detections of one image or frame, ONNX against PyTorch, matched by class and place (level 3).

    The reference is PyTorch, the candidate the engine that runs the file; bars are the limits that a pair has
    to keep, such as the bar of scores for their difference.

    Attributes:
        image: title of the row, such as the name of the image.
        reference: number of detections of the reference at or above the score threshold.
        matched: number of those that have a partner of their class with IoU (or distance) and score
            difference within the bars.
        missing: number of those without any partner.
        extra: number of detections of the candidate without a partner, of those that are above the score
            threshold by the bar of scores or more.
        worst_iou: smallest IoU of a pair that counts; 1.0 when there is none, also of tasks that match by
            distance. Pairs count if one side does as `outside` says.
        worst_score: largest score difference of a pair that counts; 0.0 when there is none.
        passed: whether the results could be compared, nothing is missing, nothing extra, and all pairs are
            within the bars. Below float32 it is True of all that could be compared if the share of matched
            results of all cases passes, see `half_precision.accept_rate`.
        reason: what is missing, extra or outside, or why it failed otherwise; '' if nothing is wrong.
        outside: number of pairs of one class whose IoU, distance or score difference is outside the bars, of
            those whose reference is counted in `reference`, or whose candidate is as high as `extra` asks.
        worst_distance: largest distance of a pair that counts, of tasks that match by distance (metres of
            boxes in 3D), 0.0 when there is none; None of those that match by IoU, and of a `broken` row.
        broken: whether the results could not be compared at all, which fails: `reference` and
            `missing` are then all results of PyTorch, `extra` all of the engine, `worst_iou` is 0 and
            `worst_score` 1.
        low: number of results of both sides below the score threshold, which are judged over the whole proof;
            of the candidate's also those above it by less than the bar of scores.
        low_alone: number of those without a partner within the bars.
        alone: a line for each result without a partner within the bars, of those that count; of many the
            first.
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
        name: e.g. 'traced input', 'other image', 'other size, batch 2'.
        input_shape: shape of the input, or of each, as text: '1x3x608x608'; '' if it has none.
        traced: whether the exporter saw this input.
        tensors: level 2 rows (empty for forms whose outputs are results).
        detections: level 3 rows, one per image.
        substituted: rows of the results that the user's test path makes of the file's own tensors, against
            those of the file, one per image; () if the tensors cannot be put in.
        inner: rows of boxes between the stages of the file, such as proposals, against those that the user's
            code makes of the file's tensors before; a few may lack a partner.
        notes: what the reader should know that is no failure.
        counts: name of a limit -> the most of what it limits that the input had, see `open_points.py`.
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
        """Whether every row passed; True of a case without rows, such as one whose outputs are all empty.

        Outputs that cannot be compared have a row that fails.
        """
        return all(row.passed for row in (*self.tensors, *self.detections, *self.substituted, *self.inner))

    @property
    def failures(self) -> list[str]:
        """A line for each row that failed: name of the case, of the tensor or image, and the reason."""
        rows = [(row.tensor, row) for row in self.tensors] + [(row.image, row) for row in self.detections]
        rows += [(row.image, row) for row in self.inner]
        rows += [(f"{row.image}, by the file's own tensors", row) for row in self.substituted]
        return [f'{self.name}: {title}: {row.reason}' for title, row in rows if not row.passed]

    def to_json(self) -> dict[str, Any]:
        """Return all attributes, and `passed`, in types that `json` writes: dicts, tuples, texts, numbers."""
        return dataclasses.asdict(self) | dict(passed=self.passed)


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """One metric of one data set, by PyTorch and by the ONNX engine (level 5).

    Attributes:
        name: name of the metric, e.g. 'bbox_mAP'.
        reference: value by PyTorch; NaN if it gave none.
        candidate: value by the engine; NaN if it gave none.
        bar: largest absolute difference that passes.
        passed: whether they differ by no more, or are both NaN, as the data set has no such object; False of
            the row that stands for a data set of which no metric has a value.
    """

    name: str
    reference: float
    candidate: float
    bar: float
    passed: bool

    @property
    def difference_text(self) -> str:
        """The difference and its bar in words, or which side has no value."""
        sides = (('PyTorch', self.reference), ('the engine', self.candidate))
        if missing := [title for title, value in sides if math.isnan(value)]:
            return f'no value by {" and by ".join(missing)} (bar {self.bar:g})'
        return f'difference {abs(self.candidate - self.reference):.5f} (bar {self.bar:g})'


MODE_TITLES = dict(free='free-running', teacher='teacher-forced')
"""Mode of a `SequenceRow` -> its name in tables."""


@dataclasses.dataclass(frozen=True)
class SequenceRow:
    """One drive through both engines, frame by frame (level 4).

    Attributes:
        mode: 'teacher': before each frame the candidate gets the reference's memory, so that every frame
            is judged alone, tensors by their tolerances, or below float32 by their cosine; 'free': each keeps
            its own memory, and tensors only have to be comparable. The detections count in both.
        frames: number of frames that both engines ran.
        resets: number of times that the reference's memory was emptied after the first frame.
        time_jumps: number of gaps of at least twice the usual one within a scene.
        reference: number of detections of the reference at or above the score threshold, of all frames.
        matched: number of those with a partner within the bars.
        missing: number of those without a partner.
        extra: as in `DetectionRow`, of all frames.
        outside: number of pairs outside the bars.
        match_rate: share of `matched` in the longer of both lists, `reference` or `matched` + `outside` +
            `extra`; below float32 `outside` counts as matched, too. None when there was nothing to match.
        match_bar: smallest rate that passes.
        worst_distance: largest distance of a pair that counts, metres; None if the task does not measure one.
        worst_score: largest score difference of a pair that counts, see `DetectionRow`.
        ties: number of memory rows, and of queries if a memory is chosen anew in every frame, that differ
            between the engines because scores were equal within rounding; not errors.
        tied_frames: number of frames with a tie.
        affected_frames: number of frames whose memory holds rows of a tie, of this or of an earlier frame.
        taken_over: number of frames after which a free-running candidate went on with the reference's memory,
            since a tie alone decided which rows were kept.
        low: number of results of both sides below the score threshold, of all frames, see `DetectionRow`.
        low_alone: number of those without a partner within the bars.
        tensors: the worst row per column group of the outputs and of the memory, `at` its frame. In a free
            run a row fails only if it cannot be compared, as with NaN, another shape or a missing tensor.
        reasons: why the run fails; empty when it passes.
        series: figures of each frame: `name`, `reset`, `gap_s` (seconds since the frame before; None for the
            first one of a scene), `reference`, `matched` (as in `match_rate`), `extra` and `ties` -> list
            with an entry per frame; `errors` (largest absolute difference) and `ratios` (the same over
            its tolerance) -> tensor -> such a list, see `WorstRows.series`.
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
        """Name of the mode in tables."""
        return MODE_TITLES.get(self.mode, self.mode)

    @property
    def passed(self) -> bool:
        """Whether there is no reason to fail."""
        return not self.reasons


@dataclasses.dataclass(frozen=True)
class Pair:
    """One sample with both engines' results, for pictures of it.

    Attributes:
        title: title of the sample.
        background: what results are drawn on: a picture (h, w, 3) uint8 BGR as it was read; those of all
            cameras (N, h, w, 3), as the network saw them, before normalising; points (P, D) float32, x, y, z
            first, LiDAR frame; None if the results are dense maps.
        reference: PyTorch's results: those of the family's task (`Detections` in pixels of the picture,
            `Detections3D` in the LiDAR frame, ...), or a map (C, H, W).
        candidate: the engine's, of the same type.
        engine: its name in titles.
        lidar2img: (N, 4, 4) float64, LiDAR frame to pixels of the pictures of all cameras; else None.
        points: (P, D) float32 of the same moment, LiDAR frame, if `background` is pictures of cameras and
            there are points; else None.
    """

    title: str
    background: np.ndarray | None
    reference: Any
    candidate: Any
    engine: str = 'ONNX Runtime'
    lidar2img: np.ndarray | None = None
    points: np.ndarray | None = None


def failed_detections(title: str, expected: Any, error: Exception) -> DetectionRow:
    """Return the row of an image, sweep or frame, `title`, for which an error was raised, not detections.

    `expected` are PyTorch's detections, all of which are missing.
    """
    reason = f'no detections: {one_line(error)[:200]}'
    return DetectionRow(title, len(expected), 0, len(expected), 0, 0.0, 1.0, False, reason, broken=True)
