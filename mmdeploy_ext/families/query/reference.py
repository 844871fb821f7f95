"""Detectors of queries as mmdet runs them, unpatched."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.families.common import mmdet_reference
from mmdeploy_ext.families.common.mmdet_reference import given_to, instances_of_classes, metas_of, tested
from mmdeploy_ext.families.common.query_networks import NAMES, NETWORKS, TOKEN_SCORES, query_head
from mmdeploy_ext.families.query import graphs, masks, supported_parts
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.panoptic import Segments
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage


class QueryReference(ImageReference):
    def borders(self) -> dict[str, Any]:
        if graphs.num_proposals(self.model):
            scores = NETWORKS[supported_parts.kind_of(query_head(self.model))].token_scores
            return {_token_branch(self.model): lambda calls: {TOKEN_SCORES: scores(calls[0])}}

        def last(calls: list[Any]) -> dict[str, Any]:
            sides = [side[-1] for side in calls[0][:2]]
            return {
                name: side if isinstance(side, torch.Tensor) and side.dim() == 3 else side[-1]
                for name, side in zip(NAMES, sides, strict=True)
            }

        return {f'{_head_name(self.model)}.forward': last}

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        given = [rows[None] for rows in given_to(self.model, tensors, NAMES).values()]
        if not given:
            return {}
        head = query_head(self.model)
        taken = [*inspect.signature(head.get_bboxes).parameters].index('img_metas')
        if taken == len(NAMES):  # DETR, a list of levels
            outputs = tuple([rows] for rows in given)
        else:
            outputs = (*given, *[None] * (taken - len(NAMES)))
        return {'extract_feat': None, f'{_head_name(self.model)}.forward': outputs}

    def unjudged(self) -> str:
        if not graphs.num_proposals(self.model):
            return ''
        return (
            f'the tensors {" and ".join(NAMES)} were compared only through their results, because '
            'rounding decides which queries are the best'
        )

    def ranking(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        head = query_head(self.model)
        if TOKEN_SCORES not in tensors or not head.with_box_refine:  # without, all layers share the branch
            return {}
        scores = given_to(self.model, tensors, [TOKEN_SCORES])[TOKEN_SCORES]
        return {_token_branch(self.model): scores[..., None].expand(-1, -1, head.cls_out_channels)}


def _head_name(model: nn.Module) -> str:
    return 'query_head' if hasattr(model, 'query_head') else 'bbox_head'


def _token_branch(model: nn.Module) -> str:
    last = query_head(model).transformer.decoder.num_layers
    return f'{_head_name(model)}.cls_branches.{last}.forward'


class QueryMasksReference(ImageReference):
    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Instances]:
        image_instances = []
        for result, image in zip(
            tested(self.model, images, metas_of(images), rescale=True), images, strict=True
        ):
            of_classes = (
                result['ins_results'] if isinstance(result, dict) else result
            )  # beside a panoptic map
            of_image = instances_of_classes(*of_classes, tuple(image.ori_shape))
            rows = of_image.scores > 0
            image_instances.append(
                Instances(of_image.masks[rows], of_image.scores[rows], of_image.labels[rows])
            )
        return image_instances

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        outputs = tuple([queries] for queries in given_to(self.model, tensors, masks.NAMES).values())
        return {'extract_feat': None, 'panoptic_head.forward': outputs} if outputs else {}

    def borders(self) -> dict[str, Any]:
        if supported_parts.attends_inside_masks(self.model.panoptic_head):
            names = masks.pixel_names(self.model.panoptic_head)

            def pixels(calls: list[Any]) -> dict[str, Any]:
                features, sources = calls[0]
                return dict(zip(names, (features, *sources), strict=True))

            return {'panoptic_head.pixel_decoder.forward': pixels}

        def last(calls: list[Any]) -> dict[str, Any]:
            return dict(zip(masks.NAMES, (layers[-1] for layers in calls[0]), strict=True))

        return {'panoptic_head.forward': last}

    def unjudged(self) -> str:
        if not supported_parts.attends_inside_masks(self.model.panoptic_head):
            return ''
        return (
            f'the tensors {" and ".join(masks.NAMES)} were compared only through their results: queries '
            "attend only inside their masks, so a pixel at a mask's threshold, where rounding decides, "
            'changes them'
        )


class QueryPanopticReference(QueryMasksReference):
    def tensors(self, feeds: Mapping[str, np.ndarray], form: str, **_: Any) -> dict[str, np.ndarray]:
        image = torch.from_numpy(feeds['input']).to(next(self.model.parameters()).device)
        batch, _, *size = image.shape
        shapes = feeds.get('img_shape', np.full((batch, 2), size))
        metas = [dict(batch_input_shape=tuple(size), img_shape=(*map(int, shape), 3)) for shape in shapes]
        with torch.no_grad():
            outputs = self.model.panoptic_head(self.model.extract_feat(image), metas)
        return {name: layers[-1].cpu().numpy() for name, layers in zip(masks.NAMES, outputs, strict=True)}

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Segments]:
        results = tested(self.model, images, metas_of(images), rescale=True)
        classes = int(self.model.panoptic_fusion_head.num_classes)
        return [Segments.of_map(result['pan_results'], classes) for result in results]


class QueryRegionsReference(ImageReference):
    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Detections | Instances]:
        results = (mmdet_reference.detections(self.model, [image], rescale) for image in images)
        return [of_image for (of_image,) in results]
