"""Monocular detectors as mmdet3d runs them, unpatched."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import Box3DMode, CameraInstance3DBoxes
from torch import nn

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.exporting.substitution import PerCall
from mmdeploy_ext.families.common.mmdet_reference import given_to, metas_of, tested
from mmdeploy_ext.families.monocular import cameras
from mmdeploy_ext.families.monocular.networks import SMOKE_NAMES, output_names, raw_names
from mmdeploy_ext.families.monocular.runtime.decoding import MonocularDetections
from mmdeploy_ext.families.monocular.smoke_graphs import STRIDE
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage


def metas(images: Sequence[PreparedImage]) -> list[dict[str, Any]]:
    """Return `img_metas` in which the network input, with its camera, is the original picture."""
    batch = metas_of(images)
    for meta, image in zip(batch, images, strict=True):
        meta.update(
            cam2img=cameras.camera_of(image),
            scale_factor=1.0,
            box_type_3d=CameraInstance3DBoxes,
            box_mode_3d=Box3DMode.CAM,
            trans_mat=np.diag([1 / STRIDE, 1 / STRIDE, 1.0]).astype(np.float32),
        )
    return batch


class MonocularReference(ImageReference):
    def tensors(
        self,
        feeds: Mapping[str, np.ndarray],
        form: str,
        given: Mapping[str, np.ndarray] = {},
        **_: Any,
    ) -> dict[str, np.ndarray]:
        head, outputs = self.model.bbox_head, outputs_of(self.model, given) if form == 'decode' else ()
        with torch.no_grad():
            if not outputs:
                image = torch.from_numpy(feeds['input']).to(next(self.model.parameters()).device)
                outputs = head(self.model.extract_feat(image))
            if not hasattr(head, 'scales'):
                return {name: maps.cpu().numpy() for name, (maps,) in zip(SMOKE_NAMES, outputs, strict=True)}
            raw = dict(zip(outputs_in_order(head), outputs, strict=True))
            if form == 'raw':
                return {
                    f'{name}_{level}': maps.cpu().numpy()
                    for name in output_names(head)
                    for level, maps in enumerate(raw[name])
                }
            return {
                name: array.cpu().numpy()
                for name, array in decoded_by_mmdet3d(self.model, raw, feeds).items()
            }

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[MonocularDetections]:
        results = []
        for image, meta in zip(images, metas(images), strict=True):
            (result,) = tested(self.model, [image], [meta], rescale)
            results.append(_as_detections(result, image))
        if not rescale:
            return results
        return [of_image.scaled(image.scale_factor) for of_image, image in zip(results, images, strict=True)]

    def substitutes(self, given: Mapping[str, np.ndarray]) -> dict[str, Any]:
        outputs = outputs_of(self.model, given)
        if not outputs:
            return {}
        count = len(next(level for levels in outputs for level in levels if level is not None))
        calls = (
            tuple(
                [None if level is None else level[index : index + 1] for level in levels]
                for levels in outputs
            )
            for index in range(count)
        )
        return {'extract_feat': None, 'bbox_head.forward': PerCall(calls)}

    def borders(self) -> dict[str, Any]:
        head = self.model.bbox_head
        names = outputs_in_order(head) if hasattr(head, 'scales') else SMOKE_NAMES

        def named(calls: list[Any]) -> dict[str, torch.Tensor]:
            images = [
                {
                    f'{name}_{index}' if hasattr(head, 'scales') else name: level
                    for name, levels in zip(names, call, strict=True)
                    for index, level in enumerate(levels)
                    if level is not None
                }
                for call in calls
            ]
            return {name: torch.cat([image[name] for image in images]) for name in images[0]}

        return {'bbox_head.forward': named}


def _as_detections(result: Mapping[str, Any], image: PreparedImage) -> MonocularDetections:
    boxes, corners = result['img_bbox'], None
    rows, labels = boxes['boxes_3d'].tensor.numpy(), boxes['labels_3d'].numpy()
    if 'img_bbox2d' in result:  # boxes in the picture (n, 5) of each class
        corners = np.zeros((len(labels), 4), np.float32)
        for label, of_class in enumerate(result['img_bbox2d']):
            corners[labels == label] = of_class[:, :4]
    attributes = boxes['attrs_3d'].numpy() if 'attrs_3d' in boxes else None
    camera = cameras.feeds([image], rescale=False)['unmoved_cam2img'][0]
    return MonocularDetections(
        np.concatenate([rows, np.zeros((len(rows), 9 - rows.shape[1]))], 1, dtype=np.float32),
        boxes['scores_3d'].numpy(),
        labels,
        attributes,
        corners,
        tuple(map(tuple, camera.tolist())),
        rows.shape[1],
    ).best_first()


def outputs_in_order(head: nn.Module) -> tuple[str, ...]:
    depth = ('depth_cls_pred', 'weight') if hasattr(head, 'use_depth_classifier') else ()
    return ('cls_score', 'bbox_pred', 'dir_cls_pred', *depth, 'attr_pred', 'centerness')


def decoded_by_mmdet3d(
    model: nn.Module, raw: Mapping[str, Sequence[torch.Tensor | None]], feeds: Mapping[str, np.ndarray]
) -> dict[str, torch.Tensor]:
    """Return the outputs of 'decode' as mmdet3d's `get_bboxes` gives them to its suppression.

    Centres are moved to the bottom, and `attr_pred` are logits.
    """
    head, batch = model.bbox_head, []
    cfg = type(head.test_cfg)(dict(head.test_cfg, nms_pre=-1))
    sizes = feeds.get('img_shape')
    if sizes is None:
        sizes = np.full((len(feeds['input']), 2), feeds['input'].shape[2:])
    for index, (cam2img, size) in enumerate(zip(feeds['cam2img'], sizes, strict=True)):
        size = np.where(size > 0, size, feeds['input'].shape[2:])
        meta = dict(
            cam2img=cam2img,
            scale_factor=1.0,
            img_shape=(*map(int, size), 3),
            box_type_3d=CameraInstance3DBoxes,
        )
        levels = [
            [None if maps is None else maps[index : index + 1].clone() for maps in raw[name]]
            for name in outputs_in_order(head)
        ]
        batch.append(_before_suppression(head, levels, meta, cfg))
    results = {name: torch.stack([image[name] for image in batch]) for name in batch[0]}
    if head.pred_attrs:
        rows = [maps.permute(0, 2, 3, 1).flatten(1, 2) for maps in raw['attr_pred']]
        results['attr_pred'] = torch.cat(rows, 1)
    return results


def _before_suppression(
    head: nn.Module, levels: Sequence[Any], meta: dict[str, Any], cfg: Any
) -> dict[str, torch.Tensor]:
    rows: dict[str, torch.Tensor] = {}
    names = type(head)._get_bboxes_single.__globals__
    suppress = names['box3d_multiclass_nms']

    def record(*arguments: Any) -> Any:
        boxes, _, scores, *_ = arguments
        rows['boxes'] = CameraInstance3DBoxes(boxes, box_dim=boxes.shape[1], origin=(0.5, 0.5, 0.5)).tensor
        rows['scores'] = scores[:, :-1].clone()
        if head.pred_bbox2d:
            rows['bboxes'] = arguments[8].clone()
        nothing = [argument[:0] if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        return suppress(*nothing)

    with replaced_entry(names, 'box3d_multiclass_nms', record):
        head.get_bboxes(*levels, [meta], cfg=cfg, rescale=False)
    return rows


def outputs_of(model: nn.Module, given: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    """Return the head's outputs from the tensors of a file; () if some are missing."""
    head = model.bbox_head
    is_smoke = not hasattr(head, 'scales')
    maps = given_to(model, given, SMOKE_NAMES if is_smoke else raw_names(head))
    if is_smoke or not maps:
        return tuple([level] for level in maps.values())
    levels = range(len(head.strides))
    return tuple([maps.get(f'{name}_{index}') for index in levels] for name in outputs_in_order(head))
