"""What a proof found, as plain data: the table, the JSON file and the report page are three views of it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from mmdeploy_ext.compare.rows import TensorRow
    from mmdeploy_ext.proof.levels.graph_result import GraphResult
    from mmdeploy_ext.runtime.detections import Detections
    from mmdeploy_ext.runtime.detections3d import Detections3D


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement about the file that is true or not (level 1).

    Attributes:
        name: what was checked.
        passed: whether it holds.
        detail: got and expected, in one line.
    """

    name: str
    passed: bool
    detail: str = ''


@dataclasses.dataclass(frozen=True)
class DetectionRow:
    """Detections of one image or frame, ONNX against PyTorch, matched by class and place (level 3).

    Attributes:
        image: name of the image.
        reference: detections of the reference at or above the score threshold.
        matched: pairs of the same class with IoU and score difference within the bars.
        missing: of the reference, without a partner.
        extra: of the candidate, without a partner.
        worst_iou: smallest IoU of a pair; 1.0 when there is none.
        worst_score: largest score difference of a pair.
        passed: nothing missing, nothing extra, all pairs within the bars.
        reason: why it failed; empty when passed.
        outside: pairs of the same class whose place or score difference is outside the bars.
        worst_distance: metres; largest distance of the centres of a pair, for boxes in 3D; None in images.
        broken: the results could not be compared at all.
        low: results of both sides below the score threshold, judged over the whole proof.
        low_alone: of those, without a partner within the bars.
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


@dataclasses.dataclass(frozen=True)
class Case:
    """One input that both engines were given.

    Attributes:
        name: e.g. 'traced input', 'other image', 'other size, batch 2'.
        input_shape: '1x3x608x608'.
        traced: whether the exporter saw this input.
        tensors: level 2 rows (empty for forms that are compared as detections).
        detections: level 3 rows, one per image.
    """

    name: str
    input_shape: str
    traced: bool
    tensors: tuple[TensorRow, ...] = ()
    detections: tuple[DetectionRow, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every row passed."""
        return all(row.passed for row in (*self.tensors, *self.detections))


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """One metric of one data set by both engines (level 5).

    Attributes:
        name: e.g. 'bbox_mAP'.
        reference: by PyTorch.
        candidate: by the ONNX engine.
        bar: allowed absolute difference.
        passed: whether the difference is within the bar.
    """

    name: str
    reference: float
    candidate: float
    bar: float
    passed: bool


MODE_TITLES = dict(free='free-running', teacher='teacher-forced')


@dataclasses.dataclass(frozen=True)
class SequenceRow:
    """One drive through both engines, frame by frame (level 4).

    Attributes:
        mode: 'teacher': before each frame the candidate is given the reference's memory, so that every frame
            is judged alone, by the tolerances; 'free': each keeps its own memory, and the detections count.
        frames: that both engines ran.
        resets: after the first frame, of the reference.
        time_jumps: gaps of at least twice the usual one within a scene.
        reference: detections of the reference at or above the score threshold, of all frames.
        matched: of those, with an equal on the other side.
        missing: without a partner.
        extra: of the candidate, without a partner.
        outside: pairs outside the bars.
        match_rate: matched, over the longer of both lists; None when there was nothing to match.
        match_bar: smallest rate that passes.
        worst_distance: metres, of a pair; None when the task does not measure one.
        worst_score: largest score difference of a pair.
        ties: memory rows that differ between the engines because scores in the top-k were equal within
            rounding; not errors.
        tied_frames: frames with a tie.
        affected_frames: frames whose memory holds rows of a tie, of this frame or of an earlier one.
        tensors: the worst row per column group of the outputs and of the memory, `at` its frame. In a free
            run only NaN, shapes and missing tensors fail a row.
        reasons: why the run fails; empty when it passes.
        series: one entry per frame: `name`, `reset`, `gap_s`, `reference`, `matched`, `extra`, `ties`;
            `errors` (largest absolute difference) and `ratios` (the same over its tolerance), by tensor.
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
    tensors: tuple[TensorRow, ...] = ()
    reasons: tuple[str, ...] = ()
    series: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """What people call the mode."""
        return MODE_TITLES.get(self.mode, self.mode)

    @property
    def passed(self) -> bool:
        """Whether there is no reason against it."""
        return not self.reasons


@dataclasses.dataclass
class Verdict:
    """All levels of one proof.

    Attributes:
        subject: file, family, form, config, checkpoint, hashes, versions, engine: printed as they are.
        graphs: level 1, first of all: the graph of every file.
        structure: the other checks of level 1.
        cases: levels 2 and 3.
        sequence: level 4; empty for models without a memory.
        metrics: level 5; empty when no data set was evaluated.
        timing_ms: name -> median milliseconds.
        reasons: why the proof as a whole fails beyond single rows, e.g. that nothing at all was matched.
        notes: what the reader should know that is no failure.
    """

    subject: dict[str, Any]
    structure: list[Check] = dataclasses.field(default_factory=list)
    cases: list[Case] = dataclasses.field(default_factory=list)
    metrics: list[MetricRow] = dataclasses.field(default_factory=list)
    timing_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    reasons: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    sequence: list[SequenceRow] = dataclasses.field(default_factory=list)
    graphs: list[GraphResult] = dataclasses.field(default_factory=list)

    @property
    def precision(self) -> str:
        """'fp32', or the half precision whose bars these figures are judged by."""
        return str(self.subject.get('precision') or 'fp32')

    @property
    def proven(self) -> bool:
        """Whether it is the same model by the bars of float32; half precision never is."""
        return self.passed and self.precision == 'fp32'

    @property
    def title(self) -> str:
        """The claim: PROVEN, or what half precision can say instead; with NOT when it does not hold.

        Where inputs alone decide about a graph it says so, and of how many.
        """
        claim = 'PROVEN' if self.precision == 'fp32' else f'WITHIN {self.precision.upper()} BARS'
        if not self.passed:
            return f'NOT {claim}'
        return f'{claim} ON {self.inputs} INPUTS ({self.by_inputs})' if self.by_inputs else claim

    @property
    def by_inputs(self) -> str:
        """Why inputs alone decide; '' where every graph is that of a fresh export."""
        return ', '.join(dict.fromkeys(graph.by_inputs for graph in self.graphs if graph.by_inputs))

    @property
    def inputs(self) -> int:
        """How many inputs both engines were given: pictures, sweeps, voxels, or frames of a drive."""
        return max([len(self.cases), *(row.frames for row in self.sequence)])

    @property
    def graph_text(self) -> str:
        """What level 1 says of the graphs, in one line."""
        failed = [graph.text for graph in self.graphs if not graph.passed]
        if failed or len(self.graphs) == 1:
            return '; '.join(failed or [self.graphs[0].text])
        nodes = sum(graph.nodes for graph in self.graphs)
        odd = [graph.text for graph in self.graphs if graph.by_inputs or graph.note]
        same = sum(graph.equal for graph in self.graphs)
        found = f'{same} of {len(self.graphs)} graphs equal to fresh exports ({nodes:,} nodes)'
        return '; '.join([found, *odd])

    @property
    def passed(self) -> bool:
        """Whether everything passed, and something was compared at all, on an input that was not traced."""
        return (
            not self.reasons
            and bool(self.graphs)
            and all(graph.passed for graph in self.graphs)
            and bool(self.structure)
            and any(not case.traced for case in self.cases)
            and all(check.passed for check in self.structure)
            and all(case.passed for case in self.cases)
            and all(row.passed for row in self.sequence)
            and all(row.passed for row in self.metrics)
        )

    def summary(self) -> dict[str, Any]:
        """Return the figures of all cases together: counts, worst values, one histogram of all tensors."""
        tensors = [row for case in self.cases for row in case.tensors]
        images = [row for case in self.cases for row in case.detections]
        counts = {
            name: sum(getattr(row, name) for row in images)
            for name in ('reference', 'matched', 'missing', 'extra')
        }
        return dict(
            inputs=len(self.cases),
            sequence_frames=max((row.frames for row in self.sequence), default=0),
            unseen_inputs=sum(not case.traced for case in self.cases),
            checks=len(self.structure),
            checks_failed=sum(not check.passed for check in self.structure),
            tensors=len(tensors),
            tensors_failed=sum(not row.passed for row in tensors),
            worst_rel=max((row.max_rel for row in tensors if row.max_rel is not None), default=None),
            images=len(images),
            images_failed=sum(not row.passed for row in images),
            **counts,
            worst_iou=min((row.worst_iou for row in images), default=None),
            worst_score=max((row.worst_score for row in images), default=None),
            histogram=[
                sum(column)
                for column in zip(*(row.histogram for row in tensors if row.histogram), strict=True)
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types, the verdict first; NaN and infinity, which JSON has not, become null."""
        content = dict(
            verdict=self.title.lower(),
            by_inputs=self.by_inputs,
            summary=self.summary(),
            **dataclasses.asdict(self),
        )
        for case, entry in zip(self.cases, content['cases'], strict=True):
            entry['passed'] = case.passed
        for row, entry in zip(self.sequence, content['sequence'], strict=True):
            entry['passed'] = row.passed
            entry['title'] = row.title
        for graph, entry in zip(self.graphs, content['graphs'], strict=True):
            entry.update(text=graph.text, passed=graph.passed)
            for difference, plain in zip(graph.differences, entry['differences'], strict=True):
                plain['text'] = difference.text
        for entry in content['metrics']:
            entry['difference'] = abs(entry['candidate'] - entry['reference'])
        return _plain(content)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, 'item'):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


@dataclasses.dataclass(frozen=True)
class PicturePair:
    """One image with both engines' detections, for the report.

    Attributes:
        title: file name and size.
        image_bgr: (h, w, 3) uint8 as the network saw it, before normalising.
        reference: PyTorch's detections, in pixels of `image_bgr`.
        candidate: the ONNX engine's.
        engine: what people call that engine.
    """

    title: str
    image_bgr: np.ndarray
    reference: Detections
    candidate: Detections
    engine: str = 'ONNX Runtime'


@dataclasses.dataclass(frozen=True)
class SweepPair:
    """One LiDAR sweep with both engines' detections, for the report.

    Attributes:
        title: of the sweep.
        points: (P, D) float32, x, y, z first, LiDAR frame.
        reference: PyTorch's detections, LiDAR frame.
        candidate: the ONNX engine's.
        engine: what people call that engine.
    """

    title: str
    points: np.ndarray
    reference: Detections3D
    candidate: Detections3D
    engine: str = 'ONNX Runtime'


@dataclasses.dataclass(frozen=True)
class FramePair:
    """One frame of all cameras with both engines' detections, for the report.

    Attributes:
        title: of the frame.
        images_bgr: (N, h, w, 3) uint8 as the network saw them, before normalising.
        lidar2img: (N, 4, 4) float64, LiDAR frame to pixels of those images.
        reference: PyTorch's detections, LiDAR frame.
        candidate: the ONNX engine's.
        engine: what people call that engine.
    """

    title: str
    images_bgr: np.ndarray
    lidar2img: np.ndarray
    reference: Detections3D
    candidate: Detections3D
    engine: str = 'ONNX Runtime'
