"""Results of single comparisons of a proof, as plain data."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import one_line
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from mmdeploy_ext.spec.tensors import ColumnGroup


AS_WRITTEN, EDITED = 'as written', 'edited, not compared'
"""Why a graph is not compared; outputs decide for INT8 files."""
NODE_KINDS = ('node', 'attribute', 'initializer', 'wiring')
"""Kinds of differences at a node."""
SHOWN = 3
"""Listed entries per kind in a text."""


@dataclasses.dataclass(frozen=True)
class GraphDifference:
    """One difference of a graph from its reference.

    Attributes:
        kind: see `graphs.diff.structure.Change`.
        where: node, tensor, or name of an input, output or opset.
        module: PyTorch module of the node, or ''.
        more: number of other nodes with the same difference.
    """

    kind: str
    where: str
    module: str
    detail: str
    more: int = 0

    @property
    def text(self) -> str:
        module = f' (module {self.module})' if self.module else ''
        nodes = f' and {self.more} more' if self.more else ''
        return f'{self.where}{module}{nodes}: {self.detail}'


@dataclasses.dataclass(frozen=True)
class GraphResult:
    """Comparison of a file's graph with a fresh export.

    Attributes:
        name: of the graph; '' for a single file.
        nodes: nodes of the main graph other than Constant.
        left_out: `AS_WRITTEN`, `EDITED` or ''.
        error: why it cannot be compared.
        detail: what an equal file has beside the export's nodes.
        undone: `UndoneFile` of an INT8 file by another tool, to measure its ranges.
    """

    name: str
    nodes: int
    equal: bool
    differences: tuple[GraphDifference, ...] = ()
    left_out: str = ''
    error: str = ''
    detail: str = ''
    undone: Any = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def passed(self) -> bool:
        return self.equal or bool(self.left_out)

    @property
    def text(self) -> str:
        name = f'{self.name}: ' if self.name else ''
        if self.equal:
            result = ', '.join(filter(None, [f'equal to a fresh export ({self.nodes:,} nodes)', self.detail]))
        elif not self.differences or self.left_out not in ('', EDITED):
            result = self.left_out or self.error
        else:
            places = {entry.where for entry in self.differences}
            count = len(places) + sum(entry.more for entry in self.differences)
            kind = 'node' if all(entry.kind in NODE_KINDS for entry in self.differences) else 'place'
            differ = f'{kind} differs' if count == 1 else f'{kind}s differ'
            texts = [entry.text for entry in self.differences]
            result = f'{count} {differ} from a fresh export: {first_lines(texts)}'
            result = f'edited: {result}' if self.left_out else result
        return f'{name}{result}'


def first_lines(texts: Sequence[str]) -> str:
    """Join the first `SHOWN` texts, and count the rest."""
    suffix = f'; and {len(texts) - SHOWN} more' if len(texts) > SHOWN else ''
    return '; '.join(texts[:SHOWN]) + suffix


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement (`name`) about a file; `detail` has the read and the expected value."""

    name: str
    passed: bool
    detail: str = ''


@dataclasses.dataclass(frozen=True)
class PreprocessingDifference:
    """A value that differs between the file's rule (`got`) and the test pipeline (`expected`)."""

    sample: str
    name: str
    got: str
    expected: str

    @property
    def text(self) -> str:
        return f'{self.sample}: {self.name}: got {self.got}, expected {self.expected}'


@dataclasses.dataclass(frozen=True)
class PreprocessingResult:
    """Samples prepared by a file's rule, compared with the config's test pipeline.

    Attributes:
        samples: titles.
        unit: 'image', 'frame' or 'sweep'.
        note: changes of the pipeline, e.g. 'at 608x608'.
        gaps: user code or data that was not compared, each 'without ...'.
        error: why the pipeline or the rule could not run.
        source: reference of the rule.
    """

    samples: tuple[str, ...]
    unit: str = 'image'
    differences: tuple[PreprocessingDifference, ...] = ()
    note: str = ''
    gaps: tuple[str, ...] = ()
    error: str = ''
    source: str = "the config's test pipeline"

    @property
    def passed(self) -> bool:
        return bool(self.samples) and not self.differences and not self.error

    @property
    def text(self) -> str:
        changes = ', '.join(filter(None, (self.note, *self.gaps)))
        pipeline = f'{self.source} {changes}'.strip()
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
class TensorRow:
    """One column group of one output, ONNX against PyTorch.

    Attributes:
        shape: of the group in the reference, '1x80x76x76', or '-'.
        max_abs: None, like the other figures, if not compared.
        max_rel: `max_abs` over the group's largest absolute reference value.
        tolerance: allowed absolute difference; None if judged by cosine.
        passed: finite, same shape and dtype, not empty, within tolerance, and zero only if the reference is.
        at: frame of the figures, if the row is a sequence's worst.
        norm_ratio: norm over the reference's norm.
    """

    tensor: str
    shape: str
    max_abs: float | None
    max_rel: float | None
    cosine: float | None
    tolerance: float | None
    passed: bool
    reason: str = ''
    at: str = ''
    norm_ratio: float | None = None


@dataclasses.dataclass(frozen=True)
class DetectionRow:
    """Detections of one image or frame, ONNX against PyTorch, matched by class and place.

    Attributes:
        image: title.
        reference: PyTorch's detections from the score threshold on.
        matched: of these, matched within the bars.
        missing: of `reference`, unmatched.
        extra: the engine's unmatched, from threshold plus score bar on.
        worst_iou: smallest IoU of a counted pair; else 1.0.
        worst_score: largest score difference of a counted pair.
        passed: nothing missing, extra or outside; below float32 the overall rate decides.
        reason: the fault, or ''.
        outside: pairs of one class outside the bars.
        worst_distance: largest distance of a counted pair, metres; None for tasks with IoU.
        broken: results could not be compared (all are missing and extra), or too many are at ties.
        low: results of both sides below the threshold.
        low_alone: of `low`, unmatched.
        alone: lines on unmatched results.
        excused: lines on results at a tie, see `matching.Ties`.
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
        input_shape: '1x3x608x608', or ''.
        traced: whether the exporter saw this input.
        tensors: rows of tensors.
        detections: rows of results, one per image.
        substituted: the file's results against the user's test path on its tensors.
        inner: boxes between the stages, such as proposals, against the user's code.
        engines: another engine's results against ONNX Runtime's.
        whole: all tensors fed to the user's code were compared.
        notes: remarks; no failure.
        counts: name of a limit -> largest count in the input.
        sample: name of an input that several cases share.
    """

    name: str
    input_shape: str
    traced: bool
    tensors: tuple[TensorRow, ...] = ()
    detections: tuple[DetectionRow, ...] = ()
    substituted: tuple[DetectionRow, ...] = ()
    inner: tuple[DetectionRow, ...] = ()
    engines: tuple[DetectionRow, ...] = ()
    whole: bool = False
    notes: tuple[str, ...] = ()
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    sample: str = ''

    @property
    def passed(self) -> bool:
        return all(row.passed for row in (*self.detections, *self.parts))

    @property
    def parts(self) -> tuple[Any, ...]:
        """Rows of all comparisons except end to end results."""
        return (*self.tensors, *self.substituted, *self.inner, *self.engines)

    @property
    def chained(self) -> bool:
        """Whether each part equals PyTorch's; rounding explains the rest."""
        return self.whole and bool(self.substituted) and all(row.passed for row in self.parts)

    @property
    def failures(self) -> list[str]:
        rows = [(row.tensor, row) for row in self.tensors] + [(row.image, row) for row in self.detections]
        rows += [(row.image, row) for row in (*self.inner, *self.engines)]
        rows += [(f"{row.image}, by the file's own tensors", row) for row in self.substituted]
        return [f'{self.name}: {title}: {row.reason}' for title, row in rows if not row.passed]


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """One metric of one data set, by PyTorch and by the ONNX engine; NaN if missing.

    `bar`: largest allowed absolute difference.
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
            return f'no value from {" and ".join(missing)} (bar {self.bar:g})'
        return f'difference {abs(self.candidate - self.reference):.5f} (bar {self.bar:g})'


MODE_TITLES = dict(free='free-running', teacher='teacher-forced')


@dataclasses.dataclass(frozen=True)
class SequenceRow:
    """One drive through both engines, frame by frame.

    Attributes:
        mode: 'teacher': the candidate gets the reference's memory before each frame; 'free': its own.
        resets: resets of the reference's memory after the first frame.
        time_jumps: gaps of at least twice the usual one within a scene.
        reference, matched, missing, extra, outside: of `DetectionRow`, over all frames.
        match_rate: matched share of the longer list, or None.
        match_bar: smallest rate that passes.
        worst_distance: metres, or None.
        worst_iou, excused: of `DetectionRow`, over all frames.
        ties: memory rows and queries that differ by equal scores.
        tied_frames: frames with a tie.
        affected_frames: frames with rows of a tie in memory.
        taken_over: frames after which a free candidate got the reference's memory.
        low, low_alone: of `DetectionRow`, over all frames.
        tensors: worst row per column group of outputs and memory.
        reasons: why the run fails.
        series: per frame: `name`, `reset`, `gap_s` (None: first of a scene), `reference`, `matched`, `extra`,
            `ties`; `errors` and `ratios` (error over tolerance): tensor -> list.
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
    worst_iou: float = 1.0
    excused: tuple[str, ...] = ()
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
    """One sample with both engines' results to draw.

    Attributes:
        background: a picture (h, w, 3) uint8 BGR; all cameras (N, h, w, 3); points (P, D) float32, LiDAR
            frame; None for dense maps.
        reference, candidate: results of the task, or maps (C, H, W).
        engine: its name in titles.
        lidar2img: (N, 4, 4) float64, LiDAR frame to pixels of all cameras, or None.
        points: (P, D) float32, LiDAR frame, with images, or None.
    """

    title: str
    background: np.ndarray | None
    reference: Any
    candidate: Any
    engine: str = 'ONNX Runtime'
    lidar2img: np.ndarray | None = None
    points: np.ndarray | None = None


def failed_detections(title: str, expected: Any, error: Exception) -> DetectionRow:
    """Return the row of an image after an error: all results are missing."""
    reason = f'no detections: {one_line(error)[:200]}'
    return DetectionRow(title, len(expected), 0, len(expected), 0, 0.0, 1.0, False, reason, broken=True)


# The bars of float32, half precision and INT8.


COSINE = 0.999
"""Smallest cosine of every output; `norm_bar` follows from it."""
METRIC = 1e-3
"""Largest difference of a data-set metric in 0..1."""
MASKS = 'matched masks'
"""Name of the row with the cosine of an image's matched masks."""
RTOL, ATOL = 3e-2, 3e-2
"""Tolerances of tables, relative and absolute; `out_of_bars` decides."""


@dataclasses.dataclass(frozen=True)
class Bars:
    """What counts as equal in a precision.

    Attributes:
        cosine: smallest cosine of every output, see `norm_bar`; None in float32: tolerances and ties decide.
        iou: smallest IoU of a pair; None in float32, as `distance_m`: tasks have their own.
        distance_m: largest distance of centres and corners of a pair in 3D (m/s of velocities). A
            PointPillars in INT8 matched 11 of 81 boxes by sizes and headings, and 259 of 290 by corners.
        score: largest score difference of a pair.
        match_rate: smallest matched share of the longer list, over the proof.
        metric: largest difference of a data-set metric in 0..1.
        rtol: tolerance of arrays without a contract, relative to the largest value of a slice.
    """

    cosine: float | None = COSINE
    iou: float | None = 0.9
    distance_m: float | None = 0.5
    score: float = 0.05
    match_rate: float = 0.9
    metric: float = METRIC
    rtol: float = RTOL

    @property
    def is_float32(self) -> bool:
        return self.cosine is None

    def judge(self, rows: Sequence[TensorRow]) -> list[TensorRow]:
        """Judge rows of floats by cosine; float32 rows are already judged by tolerance."""
        if self.is_float32:
            return list(rows)
        judged = []
        for row in rows:
            if row.cosine is not None and row.max_abs is not None and row.tolerance != 0:
                reason = out_of_bars(row, self.cosine)
                row = dataclasses.replace(row, passed=not reason, reason=reason, tolerance=None)
            judged.append(row)
        return judged

    def text(self, place: str) -> str:
        """Return the bars in words; `place`: of results in space."""
        return (
            f'{tensor_text(self.cosine)}, {100 * self.match_rate:g} % of the results matched within {place} '
            f'and score {self.score}'
        )


def norm_bar(cosine: float) -> float:
    """Return the bar of a norm's relative difference, sqrt(2 (1 - c)): 0.0447 in float16, 0.2 in INT8."""
    return math.sqrt(2 * (1 - cosine))


def out_of_bars(row: TensorRow, cosine: float) -> str:
    """Return why a row is outside the bars, or ''."""
    if row.cosine is None or not row.cosine >= cosine:
        return f'cosine {row.cosine or 0:.6f} below {cosine}'
    if row.norm_ratio is not None and not abs(row.norm_ratio - 1) <= norm_bar(cosine):
        limit = f'{100 * norm_bar(cosine):.3g} %'
        return f"norm {row.norm_ratio:.4g} times the reference's, more than {limit} off"
    return ''


def tensor_text(cosine: float) -> str:
    return f'cosine of every output at least {cosine} and its norm within {100 * norm_bar(cosine):.3g} %'


FLOAT32 = Bars(None, None, None, DEFAULT_RTOL, match_rate=1.0, metric=0.0005, rtol=DEFAULT_RTOL)
HALF = Bars()
INT8 = Bars(cosine=0.98, iou=0.5, distance_m=1.0, score=0.15, match_rate=0.9, metric=1e-2)
"""Bars of INT8 files: docs/engines.md promises the metric; the rest catches broken files."""


def bars_of(precision: str) -> Bars:
    """Return the bars of 'fp32', 'fp16', 'bf16' or 'int8'."""
    return dict(fp32=FLOAT32, int8=INT8).get(precision, HALF)


def widened(groups: Sequence[ColumnGroup], precision: str) -> tuple[ColumnGroup, ...]:
    """Return a tensor's tolerances for an 'fp32' or 'fp16' file; `groups` are float32's."""
    if precision == 'fp32':
        return tuple(groups)
    return tuple(dataclasses.replace(group, rtol=RTOL, atol=max(group.atol, ATOL)) for group in groups)


def accept_rate(cases: Sequence[Case], bars: Bars) -> tuple[list[Case], str]:
    """Judge the results of all cases together.

    Returns the cases and '', or unchanged cases and the reason of a common failure. Below float32 single
    results may lack a partner.
    """
    if bars.is_float32:
        return list(cases), ''
    rows = [row for case in cases for row in case.detections if not row.broken]
    counted = sum(max(row.reference, row.matched + row.outside + row.extra) for row in rows)
    matched = sum(row.matched for row in rows)
    if counted and matched / counted < bars.match_rate:
        return list(cases), (
            f'{matched} of {counted} results matched ({100 * matched / counted:.1f} %, required '
            f'{100 * bars.match_rate:g} %)'
        )

    def accepted(row: DetectionRow) -> DetectionRow:
        return row if row.broken else dataclasses.replace(row, passed=True)

    return [dataclasses.replace(case, detections=tuple(map(accepted, case.detections))) for case in cases], ''


def accept_masks(cases: Sequence[Case], bars: Bars) -> list[Case]:
    """Return the cases with matched masks judged by the mean of their cosines over all inputs.

    Masks are binary: one image's cosine counts the pixels at the threshold. The trained toy SOLOv2 has
    0.99898 on a 320x128 image in PyTorch's own float16.
    """
    cosines = [row.cosine or 0.0 for case in cases for row in case.tensors if row.tensor.startswith(MASKS)]
    if not cosines or sum(cosines) / len(cosines) < bars.cosine:
        return list(cases)

    def accepted(row: TensorRow) -> TensorRow:
        return dataclasses.replace(row, passed=True, reason='') if row.tensor.startswith(MASKS) else row

    return [dataclasses.replace(case, tensors=tuple(map(accepted, case.tensors))) for case in cases]
