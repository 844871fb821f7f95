"""Results of any test path, matched by a task for their form."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from mmdeploy_ext.base.arrays import to_array
from mmdeploy_ext.proving.parts.part import Tree
from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.tasks import match, task_module
from mmdeploy_ext.spec.comparison import compare_named, failed_row
from mmdeploy_ext.spec.matching import in_order_of
from mmdeploy_ext.spec.results import FLOAT32, Bars
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mmdeploy_ext.spec.results import TensorRow

    Arrays = Mapping[str, np.ndarray]

LEAST_COLUMNS = 7
"""x, y, z, sizes and yaw."""
BOX_COLUMNS = 9
"""x, y, z, sizes, yaw and velocity of `Detections3D`."""


@dataclasses.dataclass
class Paired:
    """Two results of a test path, PyTorch's first, array by array.

    Attributes:
        bars: of the parts' precision.
        scored: task, title and both sides of boxes and masks, which match in any order.
        arrays: both sides' other arrays by name, rows in one order.
        failed: rows of what has no partner.
        in_order: names of arrays that no task orders.
    """

    bars: Bars = FLOAT32
    scored: list[tuple[str, str, Any, Any]] = dataclasses.field(default_factory=list)
    arrays: tuple[Arrays, Arrays] = dataclasses.field(default_factory=lambda: ({}, {}))
    failed: list[TensorRow] = dataclasses.field(default_factory=list)
    in_order: list[str] = dataclasses.field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Reasons why the results differ."""
        rows = [match(*lists, self.bars, **settings_of(*lists)) for lists in self.scored]
        rows += [*compare_named(*filled(*self.arrays), DEFAULT_RTOL, bars=self.bars), *self.failed]
        return [row.reason for row in rows if not row.passed]


def paired(title: str, reference: Any, candidate: Any, bars: Bars = FLOAT32) -> Paired:
    """Pair a test path's results of one sample, PyTorch's and the files'."""
    pairs = Paired(bars)
    _pair(pairs, title, plain(reference), plain(candidate))
    return pairs


def settings_of(task: str, title: str, reference: Any, candidate: Any) -> dict[str, float]:
    """Return another threshold of results whose scores are low, as of seeded weights."""
    is_low = (
        len(reference.scores)
        and not (reference.scores >= getattr(task_module(task), 'SCORE_THR', 0.05)).any()
    )
    return dict(score_thr=float(np.median(reference.scores))) if is_low else {}


def plain(result: Any) -> Any:
    """Return a result with arrays in place of tensors and of boxes with a `tensor`."""
    tree = Tree.of(result)
    arrays = {name: _array(value) for name, value in tree.items()}
    return tree.nested({name: array for name, array in arrays.items() if array is not None})


def _pair(pairs: Paired, title: str, reference: Any, candidate: Any) -> None:
    if type(reference) is not type(candidate):
        kinds = f'got a {type(candidate).__name__}, expected a {type(reference).__name__}'
        pairs.failed.append(failed_row(title, kinds))
        return
    sides = reference, candidate
    for is_such, task, convert in (
        (_is_boxes, 'bbox2d', _boxes),
        (_is_tracks, 'bbox2d', _tracks),
        (_is_boxes_and_masks, 'mask', _instances),
    ):
        if all(map(is_such, sides)):
            pairs.scored.append((task, title, *map(convert, sides)))
            return
    if isinstance(reference, dict):
        _pair_dict(pairs, title, reference, candidate)
    elif all(map(_is_ranking, sides)):
        _add_rows(pairs, *({f'{title}.{index}': array for index, array in enumerate(side)} for side in sides))
    elif isinstance(reference, list | tuple):
        if len(reference) != len(candidate):
            reason = f'got {len(candidate)} entries, expected {len(reference)}'
            pairs.failed.append(failed_row(title, reason))
        for index, (one, other) in enumerate(zip(reference, candidate, strict=False)):
            _pair(pairs, title if len(reference) == 1 else f'{title}.{index}', one, other)
    else:
        _pair_leaf(pairs, title, reference, candidate)


def _pair_dict(pairs: Paired, title: str, reference: dict[str, Any], candidate: dict[str, Any]) -> None:
    if reference.keys() != candidate.keys():
        reason = f'got the keys {sorted(map(str, candidate))}, expected {sorted(map(str, reference))}'
        pairs.failed.append(failed_row(title, reason))
        return
    remaining = dict(reference)
    if _is_boxes3d(reference) and _is_boxes3d(candidate):
        pairs.scored.append(('bbox3d', title, _boxes3d(reference), _boxes3d(candidate)))
        for key in ('boxes_3d', 'scores_3d', 'labels_3d'):
            remaining.pop(key)
    score_keys = [key for key in reference if 'score' in str(key)]
    for score_key in score_keys:
        _pair_rows(pairs, title, score_key, score_keys, (reference, candidate), remaining)
    for key, value in remaining.items():
        _pair(pairs, f'{title}.{key}', value, candidate[key])


def _pair_rows(
    pairs: Paired,
    title: str,
    score_key: str,
    score_keys: Sequence[str],
    sides: tuple[dict[str, Any], dict[str, Any]],
    remaining: dict[str, Any],
) -> None:
    """Pair the arrays with a row per score."""
    scores = _array(sides[0][score_key])
    if scores is None or scores.ndim != 1:
        return
    names = [score_key]
    for key in remaining:
        array = _array(remaining[key])
        if (
            key != score_key
            and array is not None
            and array.shape[:1] == scores.shape
            and _scores_of(key, score_keys) == score_key
        ):
            names.append(key)
    if names == [score_key] and score_key not in remaining:  # paired with its boxes
        return
    rows = [{f'{title}.{key}': _array(side[key]) for key in names} for side in sides]
    if any(array is None for array in rows[1].values()):
        return
    for key in names:
        remaining.pop(key, None)
    _add_rows(pairs, *rows)


def _add_rows(pairs: Paired, reference: Arrays, candidate: Arrays) -> None:
    in_order = in_order_of(reference, candidate, list(reference), pairs.bars.rtol)
    pairs.arrays[0].update(reference)
    pairs.arrays[1].update(in_order)


def _scores_of(key: Any, score_keys: Sequence[Any]) -> Any:
    """Return the scores of rows, by the longest prefix: `map_scores_3d` of `map_pts_3d`."""
    prefixes = {str(score_key).partition('score')[0]: score_key for score_key in score_keys}
    fitting = [prefix for prefix in prefixes if str(key).startswith(prefix)]
    return prefixes[max(fitting, key=len)] if fitting else None


def _pair_leaf(pairs: Paired, name: str, reference: Any, candidate: Any) -> None:
    expected, got = _array(reference), _array(candidate)
    if expected is None:
        if isinstance(reference, str | bytes | type(None)) and reference != candidate:
            pairs.failed.append(failed_row(name, f'got {candidate!r}, expected {reference!r}'))
    elif got is None:
        pairs.failed.append(failed_row(name, 'is not an array'))
    else:
        pairs.in_order.append(name)
        pairs.arrays[0][name], pairs.arrays[1][name] = expected, got


def filled(reference: Arrays, candidate: Arrays) -> tuple[Arrays, Arrays]:
    """Return both sides without arrays that are empty on both."""
    empty = {
        name
        for name, array in reference.items()
        if not array.size and name in candidate and array.shape == candidate[name].shape
    }
    sides = ({name: side[name] for name in side if name not in empty} for side in (reference, candidate))
    return tuple(sides)


def _is_boxes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(entry, np.ndarray) and entry.ndim == 2 and entry.shape[1] == 5 for entry in value)
    )


def _is_tracks(value: Any) -> bool:
    """Whether a list has, per class, rows of track number, box and score, as in mmtracking."""
    return (
        isinstance(value, list)
        and all(isinstance(entry, np.ndarray) and entry.ndim == 2 and entry.shape[1] == 6 for entry in value)
        and any(len(entry) for entry in value)
        and all((entry[:, 0] % 1 == 0).all() for entry in value)
    )


def _is_boxes3d(value: dict[str, Any]) -> bool:
    """Whether a dict has 3D boxes; MapTR's `boxes_3d` are flat ones around lines."""
    if not {'boxes_3d', 'scores_3d', 'labels_3d'} <= value.keys():
        return False
    boxes = _array(value['boxes_3d'])
    return boxes is not None and boxes.ndim == 2 and boxes.shape[1] >= LEAST_COLUMNS


def _is_ranking(value: Any) -> bool:
    """Whether a list has arrays with common rows, sorted by falling scores."""
    if not isinstance(value, list | tuple) or not all(isinstance(entry, np.ndarray) for entry in value):
        return False
    if len({entry.shape[:1] for entry in value} - {()}) != 1:
        return False
    scores = [entry for entry in value if entry.ndim == 1 and entry.dtype.kind == 'f']
    return len(value) > 1 and any((np.diff(entry) <= 0).all() for entry in scores)


def _is_boxes_and_masks(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _is_boxes(value[0]) and isinstance(value[1], list)


def _boxes(value: list[np.ndarray]) -> Detections:
    rows = np.concatenate(value).astype(np.float32)
    labels = np.repeat(np.arange(len(value)), [len(entry) for entry in value]).astype(np.int64)
    order = np.argsort(-rows[:, 4], kind='stable')
    return Detections(bboxes_xyxy=rows[order, :4], scores=rows[order, 4], labels=labels[order])


def _tracks(value: list[np.ndarray]) -> Detections:
    """Return boxes labelled by class and track number."""
    rows = np.concatenate(value)
    classes = np.repeat(np.arange(len(value)), [len(entry) for entry in value])
    order = np.argsort(-rows[:, 5], kind='stable')
    rows, labels = rows[order].astype(np.float32), classes + len(value) * rows[:, 0].astype(np.int64)
    return Detections(bboxes_xyxy=rows[:, 1:5], scores=rows[:, 5], labels=labels[order])


def _instances(value: tuple[list[np.ndarray], list[Any]]) -> Instances:
    boxes = np.concatenate(value[0]).astype(np.float32)
    labels = np.repeat(np.arange(len(value[0])), [len(entry) for entry in value[0]]).astype(np.int64)
    masks = [_decoded(entry) for of_class in value[1] for entry in of_class]
    order = np.argsort(-boxes[:, 4], kind='stable')
    stacked = np.stack(masks) if masks else np.zeros((0, 1, 1), bool)
    return Instances(
        masks=stacked[order], scores=boxes[order, 4], labels=labels[order], bboxes_xyxy=boxes[order, :4]
    )


def _decoded(entry: Any) -> np.ndarray:
    if isinstance(entry, dict):
        from pycocotools import mask as coco

        return coco.decode(entry).astype(bool)
    return np.asarray(entry).astype(bool)


def _boxes3d(value: dict[str, Any]) -> Detections3D:
    boxes = getattr(value['boxes_3d'], 'tensor', value['boxes_3d'])
    boxes, scores, labels = (_array(entry) for entry in (boxes, value['scores_3d'], value['labels_3d']))
    padded = np.zeros((len(boxes), BOX_COLUMNS), np.float32)
    padded[:, : boxes.shape[1]] = boxes[:, :BOX_COLUMNS]
    order = np.argsort(-scores, kind='stable')
    return Detections3D(padded[order], scores[order].astype(np.float32), labels[order].astype(np.int64))


def _array(value: Any) -> np.ndarray | None:
    value = getattr(value, 'tensor', value)
    if isinstance(value, torch.Tensor):
        return to_array(value)
    if isinstance(value, np.ndarray | int | float | np.generic) and not isinstance(value, str):
        array = np.asarray(value)
        return array if array.dtype.kind in 'fiub' else None
    return None


def scores_of(result: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (n,) and labels (n,) of objects in any test path's result; labels may be ()."""
    found = [found for found in _scored(plain(result)) if found[0].ndim == 1]
    scores, labels = zip(*found, strict=True) if found else ((np.zeros(0),), ())
    return np.concatenate(scores), np.concatenate([*labels, np.zeros(0, int)])


def _scored(value: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if hasattr(value, 'detections'):
        value = value.detections
    if hasattr(value, 'scores'):
        yield value.scores, value.labels
    elif _is_boxes(value):
        boxes = _boxes(value)
        yield boxes.scores, boxes.labels
    elif _is_boxes_and_masks(value):
        yield from _scored(value[0])
    elif isinstance(value, dict):
        for key in (key for key in value if 'scores' in str(key) and isinstance(value[key], np.ndarray)):
            labels = value.get(str(key).replace('scores', 'labels'))
            yield value[key], labels if isinstance(labels, np.ndarray) else np.zeros(0, int)
        for entry in value.values():
            yield from _scored(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _scored(entry)


def flat_arrays(result: Any) -> dict[str, np.ndarray]:
    """Return name -> array of every array in a result."""
    tree = Tree.of(result)
    found = {name: _array(value) for name, value in tree.items()}
    return {name: array for name, array in found.items() if array is not None}


def digest_of(sample: Any) -> str:
    """Return a hash of the tensors and arrays of a sample."""
    digest = hashlib.sha256()
    for name, array in sorted(flat_arrays(_opened(sample)).items()):
        digest.update(name.encode() + str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _opened(value: Any) -> Any:
    from mmcv.parallel import DataContainer

    def content(leaf: Any) -> Any:
        return _opened(leaf.data) if isinstance(leaf, DataContainer) else leaf

    return pytree.tree_map(content, value)


def kept_results(samples: Sequence[Any], results: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return 'key of the sample/name' -> array of all results, see `history_keys`."""
    return {
        f'{key}/{name}': array
        for key, result in zip(history_keys(samples), results, strict=True)
        for name, array in flat_arrays(result).items()
    }


def with_kept(result: Any, key: str, kept: Mapping[str, np.ndarray]) -> Any:
    """Return a result with the arrays of `kept_results` for its sample's key, or None."""
    arrays = {name.partition('/')[2]: array for name, array in kept.items() if name.startswith(f'{key}/')}
    if not arrays:
        return None
    tree = Tree.of(plain(result))
    return tree.nested(arrays)


def history_keys(samples: Sequence[Any]) -> list[str]:
    """Return a key per sample that depends on it and all earlier ones, for models with memory."""
    keys, before = [], ''
    for sample in samples:
        before = hashlib.sha256((before + digest_of(sample)).encode()).hexdigest()[:16]
        keys.append(before)
    return keys
