"""SOLO, Decoupled SOLO and SOLOv2 in numpy: post-processing of the form 'raw', equal to 'full'.

`exporting/postprocess/mask.py` is the same inside a graph.
Glossary: B batch, C classes, S grid cells of all levels, level after level and each row by row, g cells along
a side of a level, G grid lines of all levels (the sum of g), E channels of a SOLOv2 kernel, m chosen cells, N
candidates, n results, H4, W4 size of the soft masks, h, w size of the results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import ShapeError
from mmdeploy_ext.runtime.detections import Instances, check_all_seen, results_from_padded
from mmdeploy_ext.runtime.geometry import sigmoid
from mmdeploy_ext.runtime.mask_resize import lines, resizing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.families.solo.facts import SoloFacts
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.spec.metadata import Metadata

RUNNERS = dict.fromkeys(('full', 'raw'), 'solo')

CHUNK = 64


def resize_and_threshold(
    soft: np.ndarray, img_shape: Sequence[int], ori_shape: Sequence[int], ratio: int, mask_thr: float
) -> np.ndarray:
    """Return the masks (n, h, w) bool of soft masks: resized to the input, cropped, resized again.

    Both resizes are bilinear with half-pixel centres.

    Args:
        soft: (n, H4, W4) float32 probabilities.
        img_shape: h, w before padding, pixels; 0 means the whole input.
        ori_shape: h, w of the results; 0 means the size of `soft` times `ratio`.
        ratio: pixels of the input per pixel of the soft masks.
        mask_thr: exclusive threshold.
    """
    rows, columns = resizing(soft.shape[1:], img_shape, ori_shape, ratio)
    masks = np.empty((len(soft), len(rows), len(columns)), bool)
    for index, values in enumerate(soft):
        np.greater(rows @ (values @ columns.T), mask_thr, out=masks[index])
    return masks


def matrix_decay(
    labels: np.ndarray, areas: np.ndarray, overlaps: np.ndarray, kernel: str, sigma: float
) -> np.ndarray:
    """Return the factors (N,) float32 of the matrix NMS; the caller drops rows of NaN.

    Args:
        labels: (N,) int64, best first, N at least 1.
        areas: (N,) float32, pixels of the soft masks above the threshold.
        overlaps: (N, N) float32, common pixels.
        kernel: 'gaussian', or 'linear', which gives NaN if a mask equals two better ones.
        sigma: factor in exp(-sigma * iou^2).
    """
    union = areas[None] + areas[:, None] - overlaps
    related = np.triu(labels[:, None] == labels[None], 1)
    iou = np.where(related, overlaps / np.maximum(union, 1), np.float32(0)).astype(np.float32)
    compensation = iou.max(axis=0)[:, None]
    with np.errstate(divide='ignore', invalid='ignore'):
        if kernel == 'gaussian':
            factors = np.exp(-sigma * iou**2) / np.exp(-sigma * compensation**2)
        else:
            factors = (1 - iou) / (1 - compensation)
    return factors.min(axis=0)


def postprocess_image(
    scores: np.ndarray,
    soft_masks: Callable[[np.ndarray], np.ndarray],
    img_shape: Sequence[int],
    ori_shape: Sequence[int],
    facts: SoloFacts,
) -> Instances:
    """Return the instances of one image, best first, as the `full` graph and mmdet's `get_results`.

    Args:
        scores: (S, C) float32 class scores 0..1 after points NMS.
        soft_masks: indices of cells (m,) int64, m may be 0 -> soft masks (m, H4, W4).
        img_shape: h, w before padding, pixels; see `resize_and_threshold`.
        ori_shape: h, w of the results.
        facts: facts of the file.
    """
    grids, mask_thr = facts.num_grids, np.float32(facts.mask_thr)
    strides = np.repeat(facts.strides, [grid**2 for grid in grids])
    cells, labels = np.nonzero(scores > np.float32(facts.score_thr))
    unique_cells, inverse = np.unique(cells, return_inverse=True)
    areas, totals = (sums[inverse] for sums in _sums(unique_cells, soft_masks, mask_thr))
    keep = areas > strides[cells]
    cells, labels, areas = cells[keep], labels[keep], areas[keep]
    rescored = (scores[cells, labels] * (totals[keep] / areas)).astype(np.float32)
    order = np.argsort(-rescored, kind='stable')
    order = order[: facts.nms_pre] if facts.nms_pre > 0 else order
    cells, labels, areas, rescored = cells[order], labels[order], areas[order], rescored[order]
    if len(cells):
        overlaps = _overlaps(cells, soft_masks, mask_thr)
        rescored = rescored * matrix_decay(labels, areas, overlaps, facts.kernel, facts.sigma)
    rows = np.flatnonzero(rescored >= (facts.filter_thr if facts.filter_thr > 0 else -1))
    rows = rows[np.argsort(-rescored[rows], kind='stable')]
    rows = rows[: facts.max_per_img] if facts.max_per_img > 0 else rows
    masks = resize_and_threshold(soft_masks(cells[rows]), img_shape, ori_shape, facts.mask_stride, mask_thr)
    return Instances(masks, rescored[rows].astype(np.float32), labels[rows].astype(np.int64))


def _sums(cells: np.ndarray, soft_masks: Callable, mask_thr: np.float32) -> tuple[np.ndarray, np.ndarray]:
    areas, totals = np.zeros(len(cells), np.float32), np.zeros(len(cells), np.float32)
    for start in range(0, len(cells), CHUNK):
        soft = soft_masks(cells[start : start + CHUNK])
        hard = soft > mask_thr
        areas[start : start + CHUNK] = hard.sum(axis=(1, 2))
        totals[start : start + CHUNK] = np.where(hard, soft, 0).sum(axis=(1, 2))
    return areas, totals


def _overlaps(cells: np.ndarray, soft_masks: Callable, mask_thr: np.float32) -> np.ndarray:
    chunks = [soft_masks(cells[start : start + CHUNK]) > mask_thr for start in range(0, len(cells), CHUNK)]
    hard = np.concatenate(chunks).reshape(len(cells), -1)
    overlaps = np.zeros((len(cells),) * 2, np.float32)
    for start in range(0, hard.shape[1], 1 << 13):
        piece = hard[:, start : start + (1 << 13)].astype(np.float32)
        overlaps += piece @ piece.T
    return overlaps


def soft_masks_of(outputs: Arrays, image: int, facts: SoloFacts) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of cells (m,) int64 that returns soft masks (m, H4, W4) of one image.

    `outputs` are of SOLO the soft masks `seg_pred` (B, S, H4, W4); of Decoupled SOLO `seg_pred_x` and
    `seg_pred_y` (B, G, H4, W4), multiplied; of SOLOv2 1 x 1 kernels `kernel_pred` (B, S, E) and features
    `seg_pred` (B, E, H4, W4): a sigmoid of their product.
    """
    if facts.head == 'SOLOHead':
        return lambda cells: outputs['seg_pred'][image][cells]
    if facts.head == 'SOLOV2Head':
        kernels, features = outputs['kernel_pred'][image], outputs['seg_pred'][image]
        flat = features.reshape(len(features), -1)
        return lambda cells: sigmoid(kernels[cells] @ flat).reshape(len(cells), *features.shape[1:])
    column, row = lines(facts.num_grids)
    x, y = outputs['seg_pred_x'][image], outputs['seg_pred_y'][image]
    return lambda cells: x[column[cells]] * y[row[cells]]


def batched(outputs: Arrays, facts: SoloFacts) -> dict[str, np.ndarray]:
    """Return the outputs of the form 'raw' in the layout 'batched'.

    'batched' has the outputs of `soft_masks_of` and `cate_pred` (B, S, C); 'fork' has the outputs of
    zhangjinsong3/SOLOv2.tensorRT, joined here:
    - SOLO: `seg_preds_{level}` (B, g * g, H4, W4); Decoupled SOLO: `seg_preds_x_{level}` and
      `seg_preds_y_{level}` (B, g, H4, W4); both `cate_pred_{level}` (B, g, g, C);
    - SOLOv2: `cate_pred` (S, C) and `kernel_pred` (S, E) for one image, `cate_pred_{image}` and
      `kernel_pred_{image}` for several; with `dcn_apply_to_all_conv=False` `cate_pred_{level}` (B, g, g, C)
      and `kernel_pred_{level}` (B, E, g, g); and `seg_pred` (B, E, H4, W4).
    """
    if 'cate_pred' in outputs and outputs['cate_pred'].ndim == 3:
        return dict(outputs)
    levels = range(len(facts.num_grids))
    if facts.head != 'SOLOV2Head':
        stems = dict(seg_preds='seg_pred', seg_preds_x='seg_pred_x', seg_preds_y='seg_pred_y')
        result = {
            name: np.concatenate([outputs[f'{stem}_{level}'] for level in levels], axis=1)
            for stem, name in stems.items()
            if f'{stem}_0' in outputs
        }
    elif outputs['seg_pred'].shape[0] == 1 and 'cate_pred' in outputs:
        return dict(outputs, **{name: outputs[name][None] for name in ('cate_pred', 'kernel_pred')})
    elif outputs['cate_pred_0'].ndim == 2:
        images = range(len(outputs['seg_pred']))
        names = ('cate_pred', 'kernel_pred')
        stacked = {name: np.stack([outputs[f'{name}_{image}'] for image in images]) for name in names}
        return dict(stacked, seg_pred=outputs['seg_pred'])
    else:
        kernels = [outputs[f'kernel_pred_{level}'] for level in levels]
        rows = [level.reshape(*level.shape[:2], -1).transpose(0, 2, 1) for level in kernels]
        result = dict(kernel_pred=np.concatenate(rows, axis=1), seg_pred=outputs['seg_pred'])
    scores = [outputs[f'cate_pred_{level}'] for level in levels]
    flat = [level.reshape(len(level), -1, level.shape[-1]) for level in scores]
    return dict(result, cate_pred=np.concatenate(flat, axis=1))


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Instances]:
    """Return the instances of each image of a batch, best first.

    Args:
        metadata: metadata of the file: `form`, `postprocess` and, for 'full', `options`.
        outputs: 'full': `masks` (B, n, h, w) bool, `scores` (B, n), `labels` (B, n), -1 for padding, and with
            a limit `candidates` (B,); 'raw': see `batched`.
        feeds: for 'raw' `img_shape` (B or 1, 2), h, w before padding, and `ori_shape` (2,) of the results,
            pixels; default: the network input, rounded up to multiples of 8.
    """
    facts = metadata.postprocess
    if metadata.form == 'full':
        check_all_seen(metadata, outputs, 'max_candidates', 'candidates')
        return results_from_padded(outputs)
    outputs = batched(outputs, facts)
    cells = sum(grid**2 for grid in facts.num_grids)
    if outputs['cate_pred'].shape[1:] != (cells, facts.num_classes):
        raise ShapeError(
            f'cate_pred: got {outputs["cate_pred"].shape[1:]}, expected ({cells}, {facts.num_classes}) '
            f'for grids {facts.num_grids} and {facts.num_classes} classes'
        )
    if facts.head == 'SOLOHead':
        counts = dict(seg_pred=cells)
    elif facts.head == 'SOLOV2Head':
        counts = dict(kernel_pred=cells)
    else:
        counts = dict.fromkeys(('seg_pred_x', 'seg_pred_y'), sum(facts.num_grids))
    for name, count in counts.items():
        if outputs[name].shape[1] != count:
            raise ShapeError(
                f'{name}: got {outputs[name].shape[1]} entries, expected {count} of a {facts.head} (head)'
            )
    batch = len(outputs['cate_pred'])
    img_shape = np.broadcast_to(feeds.get('img_shape', np.zeros(2, np.float32)), (batch, 2))
    ori_shape = feeds.get('ori_shape', np.zeros(2, np.int64))
    return [
        postprocess_image(scores, soft_masks_of(outputs, image, facts), img_shape[image], ori_shape, facts)
        for image, scores in enumerate(outputs['cate_pred'])
    ]
