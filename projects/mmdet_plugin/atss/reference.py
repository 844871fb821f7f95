"""ATSS as mmdet runs it, unpatched: what a proof compares the graphs with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.exporting.postprocess.bbox2d import nms_config
from mmdeploy_ext.runtime.detections import Detections, count_bounds, sigmoid
from projects.mmdet_plugin.atss.graphs import raw_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from mmdeploy_ext.inputs.pictures import PreparedImage


def tensors(
    model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, score_form: str = 'separate', **_: Any
) -> dict[str, np.ndarray]:
    """Return the tensors of `raw` or `decode` by mmdet's own head, anchor generator and box coder."""
    with torch.no_grad():
        image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
        outputs = model.bbox_head(model.extract_feat(image))
        if form == 'raw':
            flat = [tensor for kind in outputs for tensor in kind]
            named = dict(zip(raw_names(len(outputs[0])), flat, strict=True))
        else:
            named = _decode_by_mmdet(model.bbox_head, *outputs)
            if score_form == 'product':
                named['scores'] = named['scores'] * named.pop('centerness')[..., None]
    return {name: tensor.cpu().numpy() for name, tensor in named.items()}


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of mmdet's `get_bboxes`."""
    metas = [
        dict(
            img_shape=(*image.img_shape, 3),
            scale_factor=image.scale_factor,
            ori_shape=(*image.ori_shape, 3),
            pad_shape=(*image.tensor.shape[1:], 3),
        )
        for image in images
    ]
    with torch.no_grad():
        batch = torch.from_numpy(np.stack([image.tensor for image in images]))
        batch = batch.to(next(model.parameters()).device)
        outputs = model.bbox_head(model.extract_feat(batch))
        results = model.bbox_head.get_bboxes(
            *outputs, img_metas=metas, cfg=_deployed_test_cfg(model.bbox_head), rescale=rescale
        )
    return [
        Detections(dets[:, :4].cpu().numpy(), dets[:, 4].cpu().numpy(), labels.cpu().numpy())
        for dets, labels in results
    ]


def candidate_bounds(
    model: nn.Module, feeds: Mapping[str, np.ndarray], slack: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many (anchor, class) pairs of the best of every level pass; see `ImageFamily`."""
    config = nms_config(model.bbox_head.test_cfg)
    raw = tensors(model, feeds, 'raw')
    levels = [
        count_bounds(sigmoid(logits), config.score_thr, slack)
        for name, logits in raw.items()
        if name.startswith('cls_score_')
    ]
    most = config.nms_pre if config.nms_pre > 0 else np.iinfo(np.int64).max
    least, largest = (sum(np.minimum(level[side], most) for level in levels) for side in (0, 1))
    return least, largest


def _deployed_test_cfg(head: nn.Module) -> Any:
    """Return mmdet's test_cfg with what `deploy_nms_pre` asks for; -1 is more than there are candidates."""
    wanted = head.test_cfg.get('deploy_nms_pre')
    if wanted is None:
        return head.test_cfg
    cfg = head.test_cfg.copy()
    cfg['nms_pre'] = wanted if wanted > 0 else sys.maxsize
    return cfg


def _decode_by_mmdet(
    head: nn.Module,
    cls_scores: Sequence[torch.Tensor],
    bbox_preds: Sequence[torch.Tensor],
    centernesses: Sequence[torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Decode with mmdet's own functions, image by image."""
    priors = head.prior_generator.grid_priors(
        [tensor.shape[-2:] for tensor in bbox_preds], device=bbox_preds[0].device
    )
    boxes = [
        torch.stack(
            [head.bbox_coder.decode(prior, deltas.permute(1, 2, 0).reshape(-1, 4)) for deltas in level]
        )
        for prior, level in zip(priors, bbox_preds, strict=True)
    ]
    rows = [
        [level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, columns).sigmoid() for level in levels]
        for levels, columns in ((cls_scores, head.cls_out_channels), (centernesses, 1))
    ]
    return dict(
        boxes=torch.cat(boxes, 1), scores=torch.cat(rows[0], 1), centerness=torch.cat(rows[1], 1)[..., 0]
    )
