"""Results of one image or frame: boxes, instances, segments, and how files give them."""

from __future__ import annotations

import abc
import dataclasses
import re
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.base.errors import ConfigError, InferenceError, ModelFileError
from mmdeploy_ext.spec.options import LARGEST_K, LIMITS, MADE_FOR

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from mmdeploy_ext.spec.metadata import Metadata

    Arrays = Mapping[str, np.ndarray]


class Rows:
    """Base of dataclasses of arrays with a row per result, among them `scores`."""

    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: np.ndarray | slice) -> Self:
        """Rows of an index array, slice or mask (n,) bool."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return type(self)(*(value[rows] if isinstance(value, np.ndarray) else value for value in values))

    def best_first(self) -> Self:
        return self[np.argsort(-self.scores, kind='stable')]


class Scored(Rows, abc.ABC):
    """Results of one image or frame in descending score order.

    Attributes:
        scores: (n,) float32 in 0..1.
        labels: (n,) int64 class indices.
        scored: False if all scores are 1 without meaning.
        largest_score: upper bound of scores, but for rounding.
    """

    scored: ClassVar[bool] = True
    largest_score: ClassVar[float] = 1.0
    labels: np.ndarray

    @property
    def outlines(self) -> np.ndarray | None:
        return None

    def above(self, score_thr: float) -> Self:
        return self[self.scores >= score_thr]

    def to_json(self, classes: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """A dict per result: `label`, `name`, `score` if `scored`, and `place`."""
        entries = []
        for index, (score, label) in enumerate(zip(self.scores, self.labels, strict=True)):
            name = classes[label] if 0 <= label < len(classes) else str(label)
            entry: dict[str, Any] = dict(label=int(label), name=name)
            if self.scored:
                entry['score'] = round(float(score), 6)
            entries.append(entry | self.place(index))
        return entries

    def to_supervision(self, classes: tuple[str, ...] = ()) -> Any:
        """Return the boxes and masks of an image as `supervision.Detections`, with class names if given."""
        import supervision

        masks, boxes = getattr(self, 'masks', None), getattr(self, 'bboxes_xyxy', None)
        if masks is None and boxes is None:
            raise InferenceError(f'{type(self).__name__} has neither boxes nor masks in an image')
        if boxes is None:
            boxes = np.array([bounding_box(mask) for mask in masks]).reshape(-1, 4)
        names = [classes[label] if label < len(classes) else str(label) for label in self.labels]
        masks = None if masks is None else masks > 0
        data = dict(class_name=np.array(names, str))
        return supervision.Detections(boxes.astype(np.float32), masks, self.scores, self.labels, data=data)

    def by_class(self, rows: np.ndarray, num_classes: int) -> list[np.ndarray]:
        """Split `rows` (n, ...) by label."""
        return [rows[self.labels == label] for label in range(num_classes)]

    def scaled(self, scale_factor: np.ndarray) -> Self:
        """Divide places in pixels by `scale_factor` (4,), `w h w h`; masks and metres stay."""
        return self

    def to_mmdet_result(self, num_classes: int) -> Any:
        raise ConfigError(
            f'{type(self).__name__} has no to_mmdet_result(num_classes), which evaluation needs: it '
            'returns the results of an image in the form that the data set evaluates; define it in the '
            'package of this class'
        )

    @abc.abstractmethod
    def place(self, index: int) -> dict[str, Any]:
        """Place of a result as JSON data."""


ROUNDING = 1e-3
"""One unit in the last place of float16 near 1."""


def check_ranges(results: Scored, num_classes: int, name: str) -> None:
    """Raise InferenceError for scores out of range (NaN passes) or labels of no class."""
    scores, labels = results.scores, results.labels
    outside = scores[(scores < -ROUNDING) | (scores > results.largest_score + ROUNDING)]
    if len(outside):
        raise InferenceError(
            f'{name}: {len(outside)} of {len(scores)} results have scores outside of '
            f'0..{results.largest_score:g}, such as {outside[0]:.6g}; prove the file with mm2onnx verify'
        )
    unknown = labels[(labels < 0) | (labels >= num_classes)] if num_classes else labels[:0]
    if len(unknown):
        raise InferenceError(
            f'{name}: {len(unknown)} of {len(labels)} results have labels outside of the {num_classes} '
            f'classes, such as {int(unknown[0])}; prove the file with mm2onnx verify'
        )


@dataclasses.dataclass(frozen=True)
class Detections(Scored):
    """Boxes of one image.

    Attributes:
        bboxes_xyxy: (n, 4) float32 in pixels of the network input (minus `border`); after `scaled`, and in
            `full` graphs, of the original. They may exceed the image if the model does not clip.
    """

    bboxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def scaled(self, scale_factor: np.ndarray) -> Detections:
        return dataclasses.replace(self, bboxes_xyxy=self.bboxes_xyxy / scale_factor.astype(np.float32))

    def to_mmdet_result(self, num_classes: int) -> list[np.ndarray]:
        return self.by_class(rows_with_scores(self.bboxes_xyxy, self.scores), num_classes)

    def place(self, index: int) -> dict[str, Any]:
        return dict(bbox_xyxy=[round(float(value), 3) for value in self.bboxes_xyxy[index]])


@dataclasses.dataclass(frozen=True)
class Instances(Scored):
    """Masks of one image, with optional boxes.

    Attributes:
        masks: (n, h, w) bool, or uint8 with 255 times the probability.
        bboxes_xyxy: (n, 4) float32 in pixels, or None.
        mask_scores: (n,) float32 for evaluation, or None: the boxes' scores.
    """

    masks: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    bboxes_xyxy: np.ndarray | None = None
    mask_scores: np.ndarray | None = None

    def to_mmdet_result(self, num_classes: int) -> tuple[list[np.ndarray], Any]:
        """Boxes per class (corners 0 without boxes), and masks (h, w) per class."""
        boxes = np.zeros((len(self), 4), np.float32) if self.bboxes_xyxy is None else self.bboxes_xyxy
        rows = self.by_class(rows_with_scores(boxes, self.scores), num_classes)
        masks = [list(of_class) for of_class in self.by_class(self.masks, num_classes)]
        if self.mask_scores is None:
            return rows, masks
        return rows, (masks, self.by_class(self.mask_scores, num_classes))

    def place(self, index: int) -> dict[str, Any]:
        place = mask_place(self.masks[index])
        if self.bboxes_xyxy is not None:
            place['bbox_xyxy'] = [round(float(value), 3) for value in self.bboxes_xyxy[index]]
        return place


def rows_with_scores(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Boxes (n, columns) with scores (n,) as last column, float32."""
    return np.concatenate([boxes, scores[:, None]], axis=1).astype(np.float32)


def mask_place(mask: np.ndarray) -> dict[str, Any]:
    """`area`, `bbox_xyxy` and COCO's uncompressed `segmentation` of a mask (h, w), of the pixels above 0."""
    return dict(
        area=int(np.count_nonzero(mask)),
        bbox_xyxy=bounding_box(mask),
        segmentation=dict(size=list(mask.shape), counts=run_lengths(mask)),
    )


def bounding_box(mask: np.ndarray) -> list[int]:
    """x1 y1 x2 y2 of a mask (h, w), ends exclusive; zeros if empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a mask (h, w): by columns, zeros first."""
    flat = mask.astype(bool).ravel(order='F')
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff([0, *edges, flat.size]).tolist() if flat.size else []


def unpadded(kind: type[Rows], **columns: np.ndarray) -> list[Any]:
    """A `kind` per image from fields (B, n, ...), without rows of negative labels."""
    images = []
    for arrays in zip(*columns.values(), strict=True):
        rows = kind(**dict(zip(columns, arrays, strict=True)))
        images.append(rows[rows.labels >= 0])
    return images


def with_labels(outputs: Arrays) -> Arrays:
    """Outputs of `--outputs efficient-nms` as `dets`, `labels`, `boxes`, `scores`; other outputs stay."""
    if 'num_dets' not in outputs:
        return outputs
    boxes, scores, classes = (outputs[name] for name in ('det_boxes', 'det_scores', 'det_classes'))
    present = np.arange(classes.shape[1]) < outputs['num_dets']
    boxes, scores = np.where(present[..., None], boxes, 0), np.where(present, scores, 0)
    dets = np.concatenate([boxes, scores[..., None]], axis=2)
    labels = np.where(present, classes, -1).astype(np.int64)
    return {**outputs, 'dets': dets, 'labels': labels, 'boxes': boxes, 'scores': scores}


def results_from_padded(outputs: Arrays) -> list[Detections] | list[Instances]:
    """Results per image of a `full` graph.

    `labels` (B, n), -1 for padding, with `dets` (B, n, 5) x1 y1 x2 y2 score; `boxes` (B, n, 4) and `scores`
    (B, n); or `masks` (B, n, h, w) bool and `scores`.
    """
    if {'labels', 'boxes', 'scores'} <= outputs.keys():
        boxes, scores = outputs['boxes'], outputs['scores']
        return unpadded(Detections, bboxes_xyxy=boxes, scores=scores, labels=outputs['labels'])
    if {'labels', 'masks', 'scores'} <= outputs.keys():
        masks, scores = outputs['masks'], outputs['scores']
        return unpadded(Instances, masks=masks, scores=scores, labels=outputs['labels'])
    dets = outputs['dets']
    return unpadded(Detections, bboxes_xyxy=dets[..., :4], scores=dets[..., 4], labels=outputs['labels'])


def nms(bboxes_xyxy: np.ndarray, scores: np.ndarray, iou_threshold: float, limit: int = 0) -> np.ndarray:
    """Indices that greedy NMS keeps, by descending score, of boxes (n, 4) and scores (n,).

    It ends at `limit` boxes, if that is above 0.
    """
    order = np.argsort(-scores, kind='stable')
    x1, y1, x2, y2 = bboxes_xyxy[order].T
    areas = (x2 - x1) * (y2 - y1)
    by_x = np.argsort(x1)
    # boxes beside each other, as of other classes, are not compared
    left, right = x1.astype(np.float64), x2.astype(np.float64)
    with np.errstate(invalid='ignore'):
        widths = right - left
    widest = widths.max(initial=0, where=np.isfinite(widths))
    starts = np.searchsorted(left[by_x], left - widest)
    ends = np.searchsorted(left[by_x], right, 'right')
    alive = np.ones(len(order), bool)
    indices: list[int] = []
    with np.errstate(invalid='ignore', divide='ignore'):
        for index in range(len(order)):
            if not alive[index]:
                continue
            indices.append(order[index])
            if len(indices) == limit:
                break
            rest = by_x[starts[index] : ends[index]]
            rest = rest[alive[rest] & (rest > index)]
            overlap_w = np.maximum(np.minimum(x2[index], x2[rest]) - np.maximum(x1[index], x1[rest]), 0)
            overlap_h = np.maximum(np.minimum(y2[index], y2[rest]) - np.maximum(y1[index], y1[rest]), 0)
            overlap = overlap_w * overlap_h
            alive[rest[overlap / (areas[index] + areas[rest] - overlap) > iou_threshold]] = False
    return np.asarray(indices, np.int64)


def count_bounds(scores: np.ndarray, threshold: float, slack: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest number (B,) of scores (B, ...) above a threshold, if scores vary by `slack`."""
    flat = scores.reshape(len(scores), -1)
    return (flat > threshold + slack).sum(1), (flat > threshold - slack).sum(1)


def candidates_lost(metadata: Metadata, count: int, name: str) -> ModelFileError:
    """Make the error about `count` candidates above a limit; TensorRT accepts the limit that it advises."""
    option, cap = f'--{name.replace("_", "-")}', metadata.options[name]
    advice = f'export it with {option} {count} or more, or without'
    if count > LARGEST_K:
        fewer = MADE_FOR.with_value('tensorrt')
        if metadata.options.get(MADE_FOR.name):  # nms_pre is as low as it has to be
            fewer = 'a higher score_thr in test_cfg (--cfg-options)'
        advice = f'export it without {option}; for TensorRT, which sorts {LARGEST_K} at most, with {fewer}'
    return ModelFileError(
        f'candidates: an image has {count}, more than {option} {cap} of the export, so some were dropped; '
        f'{advice}'
    )


def candidates_needed(reason: str) -> dict[str, Any]:
    """Return the options of an export that loses no candidates, by the text of `candidates_lost`; or {}."""
    if match := re.search(r'candidates: .* export it with --(max-\w+) (\d+) or more', reason):
        return {match[1].replace('-', '_'): int(match[2])}
    option = re.search(r'candidates: .* export it without .* with --for tensorrt', reason)
    return dict.fromkeys(LIMITS, 0) | dict(made_for='tensorrt') if option else {}


def check_cap(metadata: Metadata, outputs: Arrays, results: Sequence[Scored]) -> None:
    """Raise ModelFileError if `--max-candidates` may have cost results."""
    cap = metadata.options.get('max_candidates', 0)
    if not cap or 'candidates' not in outputs:  # a test path without NMS
        return
    max_per_img = metadata.postprocess.max_per_img
    counts = [
        int(count)
        for count, image in zip(outputs['candidates'], results, strict=True)
        if count > cap and (max_per_img < 0 or len(image) < max_per_img)
    ]
    if counts:
        raise candidates_lost(metadata, max(counts), 'max_candidates')


def check_all_seen(metadata: Metadata, outputs: Arrays, option: str, counts: str) -> None:
    """Raise ModelFileError if an image has more candidates (output `counts`) than `option` allows."""
    cap = metadata.options.get(option, 0)
    largest = int(np.max(outputs[counts])) if cap else 0
    if largest > cap:
        raise candidates_lost(metadata, largest, option)


def top_rows(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest values (n,), descending; ties keep their order."""
    return np.argsort(-values, kind='stable')[:count]
