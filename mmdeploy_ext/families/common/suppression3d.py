"""Bird's-eye suppression of 3D boxes in graphs: best rows, padded results.

Source: mmdet3d 1.0.0rc6, core/post_processing/box3d_nms.py `box3d_multiclass_nms`.
Glossary: B batch, A rows (of a level or of all), at least 1, C classes without background, n results of the
fullest image.
"""

from typing import Any

import torch

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.suppression import gather_rows, limit
from mmdeploy_ext.spec.tensors import ColumnGroup, TensorSpec
from mmdeploy_ext.upstream.operators.nms import NO_CANDIDATE
from mmdeploy_ext.upstream.operators.rotated_nms import rotated_keep


def best_rows(level: dict[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """Return the `count` best rows of a level by score of any class, in descending order; ties in any order.

    `level` is name -> (B, A, columns) with `scores` (B, A, C). A count of 0 or less returns `level`.
    """
    if count <= 0:
        return level
    ranks = level['scores'].amax(2)
    rows = ranks.topk(limit(count, ranks.shape[1]), 1)[1]
    return {name: gather_rows(values, rows) for name, values in level.items()}


def suppressed(
    above: torch.Tensor, scores: torch.Tensor, score_thr: float, nms_thr: float, max_per_img: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scores, rows and labels (B, n) of the results of each image, by descending score.

    Args:
        above: (B, A, 5) bird's-eye boxes: x, y of the centre, unturned sizes along x and y, metres, yaw from
            x towards y, radians.
        scores: (B, A, C), 0 or more.
        score_thr: exclusive threshold.
        nms_thr: IoU, above 0, inclusive as mmcv's on the CPU.
        max_per_img: largest number of results; below 0 no limit.
    """
    classes = scores.shape[2]
    passing = scores > score_thr
    scores = torch.where(passing, scores, torch.full_like(scores, NO_CANDIDATE))
    count = passing.sum(1).max().clamp(min=1)
    best, rows = scores.transpose(1, 2).topk(count, 2)  # (B, C, m)
    flat_rows = rows.flatten(1)
    planes = gather_rows(above, flat_rows).reshape(-1, best.shape[2], 5)
    valid = (best > NO_CANDIDATE).flatten(0, 1)
    keep = rotated_keep(planes, valid, nms_thr).reshape(best.shape)
    best = torch.where(keep, best, torch.full_like(best, NO_CANDIDATE)).flatten(1)
    labels = torch.arange(classes, device=best.device)[None, :, None].expand_as(rows).flatten(1)
    best, order = best.topk(limit(max_per_img, best.shape[1]), 1)
    count = (best > NO_CANDIDATE).sum(1).max()
    best, order = best[:, :count], order[:, :count]
    return best, flat_rows.gather(1, order), labels.gather(1, order)


def padded(results: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return the values (B, n, ...) of `results` as taps, with zeros and label -1 in padding."""
    present, outputs = results['scores'] > NO_CANDIDATE, []
    for name, tensor in results.items():
        padding = torch.full_like(tensor, -1 if name == 'labels' else 0)
        mask = present[..., None] if tensor.dim() == 3 else present
        outputs.append(tap(name, torch.where(mask, tensor, padding)))
    return tuple(outputs)


def result_specs(
    batch: int | str, columns: int, meaning: str, groups: tuple[ColumnGroup, ...] = ()
) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    """Return the specs of boxes (B, n, columns), scores and labels of the form `full`."""

    def result(name: str, dtype: str, meaning: str, axes: tuple[int, ...] = (), **more: Any) -> TensorSpec:
        return TensorSpec(name, dtype, (batch, 'n', *axes), meaning, compare='detections', **more)

    return (
        result('boxes', 'float32', f'{meaning}; padded with zeros', (columns,), groups=groups),
        result('scores', 'float32', 'scores in descending order; padded with zeros'),
        result('labels', 'int64', 'class indices; -1 where a row is padding'),
    )
