"""Detections of one image, and the numpy pieces that 2D families share.

Glossary: B images of a batch, n results of an image, h, w pixels.
"""

from __future__ import annotations

import abc
import dataclasses
import re
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from mmdeploy_ext.core.errors import ConfigError, InferenceError, ModelFileError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata

    Arrays = Mapping[str, np.ndarray]
    """Name of a tensor -> its values."""


class Rows:
    """The base of data classes of arrays with a row per result, among them `scores`.

    Fields that are no arrays are facts about all rows, or None.
    """

    scores: np.ndarray

    def __len__(self) -> int:
        """Return the number of results."""
        return len(self.scores)

    def __getitem__(self, rows: np.ndarray | slice) -> Self:
        """Return the rows at some indices (no single one), of a slice or of a mask (n,) bool."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return type(self)(*(value[rows] if isinstance(value, np.ndarray) else value for value in values))

    def best_first(self) -> Self:
        """Return all rows in descending order of score; equal ones keep their order."""
        return self[np.argsort(-self.scores, kind='stable')]


class Scored(Rows, abc.ABC):
    """Results of one image or frame in descending score order, see `Rows`.

    Attributes:
        scores: (n,) float32 in 0..1.
        labels: (n,) int64 class indices.
        scored: whether scores mean anything; otherwise all are 1.
        largest_score: what scores cannot exceed, but for rounding.
    """

    scored: ClassVar[bool] = True
    largest_score: ClassVar[float] = 1.0
    labels: np.ndarray

    @property
    def outlines(self) -> np.ndarray | None:
        """Polygons (n, corners, 2), x and y in pixels, that are drawn in place of boxes, or None."""
        return None

    def above(self, score_thr: float) -> Self:
        """Return the results with at least `score_thr`."""
        return self[self.scores >= score_thr]

    def to_json(self, classes: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Return a dict per result: `label`, `name`, `score` if `scored`, and the entries of `place`.

        `name` is that of the label in `classes`, or the label as text if there is none.
        """
        entries = []
        for index, (score, label) in enumerate(zip(self.scores, self.labels, strict=True)):
            name = classes[label] if 0 <= label < len(classes) else str(label)
            entry: dict[str, Any] = dict(label=int(label), name=name)
            if self.scored:
                entry['score'] = round(float(score), 6)
            entries.append(entry | self.place(index))
        return entries

    def by_class(self, rows: np.ndarray, num_classes: int) -> list[np.ndarray]:
        """Return for each of `num_classes` labels those of `rows` (n, ...) whose results have it."""
        return [rows[self.labels == label] for label in range(num_classes)]

    def scaled(self, scale_factor: np.ndarray) -> Self:
        """Return the results with their places divided by `scale_factor` (4,), `w h w h`.

        Here they stay as they are: masks, and boxes beside them, are of the original size already, and boxes
        of a LiDAR in metres. Classes with places in pixels of the network input override it.
        """
        return self

    def to_mmdet_result(self, num_classes: int) -> Any:
        """Return what the detector's own test path returns for an image, as its data set evaluates it.

        ConfigError: the class of these results does not define it.
        """
        raise ConfigError(
            f'{type(self).__name__} has no to_mmdet_result(num_classes), which returns the results of an '
            f'image as the data set of the config evaluates them; the package that has this class defines it'
        )

    @abc.abstractmethod
    def place(self, index: int) -> dict[str, Any]:
        """Return the place of the result of an index, as plain data: what JSON files have of it."""


ROUNDING = 1e-3
"""How far a score may lie outside of 0..1 by rounding: one unit in the last place of a float16 near 1."""


def check_ranges(results: Scored, num_classes: int, name: str) -> None:
    """Refuse results with scores outside of 0 to `Scored.largest_score`, or with labels of no class.

    Scores may be outside by up to `ROUNDING`.

    Args:
        results: results of one image, sweep or frame.
        num_classes: number of classes of the model; 0 if its file names none, then labels may be any.
        name: file that gave the results, for the message.

    Raises:
        InferenceError: it names the score or label. A score that is NaN passes.
    """
    scores, labels = results.scores, results.labels
    outside = scores[(scores < -ROUNDING) | (scores > results.largest_score + ROUNDING)]
    if len(outside):
        raise InferenceError(
            f'{name}: {len(outside)} of {len(scores)} results have scores outside of '
            f'0..{results.largest_score:g}, such as {outside[0]:.6g}; prove the file'
        )
    unknown = labels[(labels < 0) | (labels >= num_classes)] if num_classes else labels[:0]
    if len(unknown):
        raise InferenceError(
            f'{name}: {len(unknown)} of {len(labels)} results have labels of no class, such as '
            f'{int(unknown[0])}; the file names {num_classes} classes; prove it'
        )


@dataclasses.dataclass(frozen=True)
class Detections(Scored):
    """Boxes of one image, see `Scored` for the scores and labels.

    Attributes:
        bboxes_xyxy: (n, 4) float32, in pixels of the network input, or of the image in it if its `border`
            (padding above and left) was subtracted; once they are divided by the scale factor, by `scaled` or
            in a `full` graph, of the original image. Those of a model that does not clip them may reach
            beyond the image.
    """

    bboxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def scaled(self, scale_factor: np.ndarray) -> Detections:
        """Return the boxes divided by `scale_factor` (4,), `w h w h`."""
        return dataclasses.replace(self, bboxes_xyxy=self.bboxes_xyxy / scale_factor.astype(np.float32))

    def to_mmdet_result(self, num_classes: int) -> list[np.ndarray]:
        """Return per class (n, 5) float32 x1 y1 x2 y2 score."""
        return self.by_class(rows_with_scores(self.bboxes_xyxy, self.scores), num_classes)

    def place(self, index: int) -> dict[str, Any]:
        """Return `bbox_xyxy`, the pixels x1 y1 x2 y2 of one box, rounded to three decimals."""
        return dict(bbox_xyxy=[round(float(value), 3) for value in self.bboxes_xyxy[index]])


@dataclasses.dataclass(frozen=True)
class Instances(Scored):
    """Masks of one image, of its original size or the one that they are pasted into, and boxes and scores.

    Attributes:
        masks: (n, h, w) bool.
        bboxes_xyxy: (n, 4) float32, in pixels of the image; None: the detector has no boxes.
        mask_scores: (n,) float32, scores of the masks, by which they are evaluated; None: those of the boxes.
    """

    masks: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    bboxes_xyxy: np.ndarray | None = None
    mask_scores: np.ndarray | None = None

    def to_mmdet_result(self, num_classes: int) -> tuple[list[np.ndarray], Any]:
        """Return boxes as `Detections` do, with corners of 0 if it has none, and the masks (h, w) per class.

        If masks have scores of their own, the second is a pair: the masks, and per class the scores.
        """
        boxes = np.zeros((len(self), 4), np.float32) if self.bboxes_xyxy is None else self.bboxes_xyxy
        rows = self.by_class(rows_with_scores(boxes, self.scores), num_classes)
        masks = [list(of_class) for of_class in self.by_class(self.masks, num_classes)]
        if self.mask_scores is None:
            return rows, masks
        return rows, (masks, self.by_class(self.mask_scores, num_classes))

    def place(self, index: int) -> dict[str, Any]:
        """Return `area`, `segmentation` and `bbox_xyxy` of one instance, see `mask_place`.

        The box is that of the detector if it has boxes, else that round the mask.
        """
        place = mask_place(self.masks[index])
        if self.bboxes_xyxy is not None:
            place['bbox_xyxy'] = [round(float(value), 3) for value in self.bboxes_xyxy[index]]
        return place


def rows_with_scores(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return boxes (n, columns) with their scores (n,) as a last column, float32."""
    return np.concatenate([boxes, scores[:, None]], axis=1).astype(np.float32)


def mask_place(mask: np.ndarray) -> dict[str, Any]:
    """Return `area`, `bbox_xyxy` and `segmentation` of a mask (h, w) bool.

    These are its pixels, the box round it, x1 y1 x2 y2, and COCO's uncompressed run lengths: `size` and
    `counts`.
    """
    return dict(
        area=int(mask.sum()),
        bbox_xyxy=bounding_box(mask),
        segmentation=dict(size=list(mask.shape), counts=run_lengths(mask)),
    )


def bounding_box(mask: np.ndarray) -> list[int]:
    """Return x1 y1 x2 y2 of a mask (h, w); x2, y2 are one behind its last pixels, all 0 of an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return COCO's uncompressed run lengths of a mask (h, w): column by column, beginning with zeros."""
    flat = mask.astype(bool).ravel(order='F')
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff([0, *edges, flat.size]).tolist() if flat.size else []


def unpadded(kind: type[Rows], **columns: np.ndarray) -> list[Any]:
    """Return an object of the class `kind` per image, with the rows whose label is 0 or more.

    The columns are its fields, (B, n, ...); n is the number of rows of each image with its padding.
    """
    images = []
    for arrays in zip(*columns.values(), strict=True):
        rows = kind(**dict(zip(columns, arrays, strict=True)))
        images.append(rows[rows.labels >= 0])
    return images


def results_from_padded(outputs: Arrays) -> list[Detections] | list[Instances]:
    """Return the results per image of a `full` graph.

    Its outputs are `labels` (B, n), -1 for padding, and `dets` (B, n, 5) x1 y1 x2 y2 score; or `boxes`
    (B, n, 4) x1 y1 x2 y2 and `scores` (B, n); or `masks` (B, n, h, w) bool and `scores`. n is the number of
    results of the image that has most, or a constant of the file.
    """
    if {'labels', 'boxes', 'scores'} <= outputs.keys():
        boxes, scores = outputs['boxes'], outputs['scores']
        return unpadded(Detections, bboxes_xyxy=boxes, scores=scores, labels=outputs['labels'])
    if {'labels', 'masks', 'scores'} <= outputs.keys():
        masks, scores = outputs['masks'], outputs['scores']
        return unpadded(Instances, masks=masks, scores=scores, labels=outputs['labels'])
    dets = outputs['dets']
    return unpadded(Detections, bboxes_xyxy=dets[..., :4], scores=dets[..., 4], labels=outputs['labels'])


def nms(bboxes_xyxy: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Return the indices of the boxes that greedy NMS keeps, in descending order of scores.

    Args:
        bboxes_xyxy: (n, 4).
        scores: (n,).
        iou_threshold: a box is dropped if its IoU with a kept one exceeds this.
    """
    order = np.argsort(-scores, kind='stable')
    x1, y1, x2, y2 = bboxes_xyxy[order].T
    areas = (x2 - x1) * (y2 - y1)
    alive = np.ones(len(order), bool)
    indices = []
    for index in range(len(order)):
        if not alive[index]:
            continue
        indices.append(order[index])
        rest = np.flatnonzero(alive[index + 1 :]) + index + 1
        overlap_w = np.maximum(np.minimum(x2[index], x2[rest]) - np.maximum(x1[index], x1[rest]), 0)
        overlap_h = np.maximum(np.minimum(y2[index], y2[rest]) - np.maximum(y1[index], y1[rest]), 0)
        overlap = overlap_w * overlap_h
        with np.errstate(invalid='ignore', divide='ignore'):
            alive[rest[overlap / (areas[index] + areas[rest] - overlap) > iou_threshold]] = False
    return np.asarray(indices, np.int64)


def count_bounds(scores: np.ndarray, threshold: float, slack: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest number of scores (B, ...) of each image that may exceed a threshold.

    These are (B,) counts of the scores that exceed it by more than `slack`, and of those that are not below
    it by `slack` or more.
    """
    flat = scores.reshape(len(scores), -1)
    return (flat > threshold + slack).sum(1), (flat > threshold - slack).sum(1)


def candidates_lost(count: int, cap: int, option: str) -> ModelFileError:
    """Return the error of a file whose option keeps `cap` candidates, for an image with more: `count`.

    `option` is its name in Python, e.g. 'max_candidates'.
    """
    option = f'--{option.replace("_", "-")}'
    return ModelFileError(
        f'candidates: an image has {count} of them, the file was exported with {option} {cap} and '
        f'left some out; export it with {option} {count} or more, or without'
    )


def candidates_needed(reason: str) -> dict[str, int]:
    """Return name -> value of the option that `reason`, a message of `candidates_lost`, advises.

    {} for any other reason.
    """
    match = re.search(r'candidates: .* export it with --(max-\w+) (\d+) or more', reason)
    return {match[1].replace('-', '_'): int(match[2])} if match else {}


def check_cap(metadata: Metadata, outputs: Arrays, results: Sequence[Scored]) -> None:
    """Refuse results of a file with `--max-candidates` that may lack some: ModelFileError.

    `metadata` are those of the file, `outputs` its outputs by name, among them `candidates` (B,), and
    `results` the results per image. Greedy suppression goes from the best score down: a full list of
    `max_per_img` lacks none; below 0 this is no limit, and no list is full.
    """
    cap = metadata.options.get('max_candidates', 0)
    if not cap:
        return
    max_per_img = metadata.postprocess.max_per_img
    counts = [
        int(count)
        for count, image in zip(outputs['candidates'], results, strict=True)
        if count > cap and (max_per_img < 0 or len(image) < max_per_img)
    ]
    if counts:
        raise candidates_lost(max(counts), cap, 'max_candidates')


def check_all_seen(metadata: Metadata, outputs: Arrays, option: str, counts: str) -> None:
    """Refuse results of a file whose option limits the candidates, if an image has more: ModelFileError.

    `metadata` are those of the file, `outputs` its outputs by name. `option` is the name of the option,
    `counts` the name of the output with the candidates of each image.
    """
    cap = metadata.options.get(option, 0)
    largest = int(np.max(outputs[counts])) if cap else 0
    if largest > cap:
        raise candidates_lost(largest, cap, option)
