"""Dense heads as mmdet runs them, unpatched."""

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.families.common.dense_heads import HeadKind, kind_of
from mmdeploy_ext.families.common.mmdet_reference import given_to, metas_of
from mmdeploy_ext.families.dense.graphs import flat_outputs, model_facts, raw_names
from mmdeploy_ext.families.dense.heads import decoded_outputs
from mmdeploy_ext.families.dense.runtime import DecodedPriors, num_candidates
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.runtime.box_coders import Traced
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.metadata import Metadata
from mmdeploy_ext.spec.tensors import TensorSpec


class DenseReference(ImageReference):
    def tensors(
        self,
        feeds: Mapping[str, np.ndarray],
        form: str,
        given: Mapping[str, np.ndarray] = {},
        score_form: str = 'separate',
        **_: Any,
    ) -> dict[str, np.ndarray]:
        if form == 'decode' and (maps := raw_maps(self.model, given)):
            return decoded(self.model, maps, score_form)
        with torch.no_grad():
            image = torch.from_numpy(feeds['input']).to(next(self.model.parameters()).device)
            outputs = dict(zip(raw_names(self.model), flat_outputs(self.model, image), strict=True))
        if form == 'raw':
            return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}
        return decoded(self.model, outputs, score_form)

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
        test_cfg, description = self.model.bbox_head.test_cfg, model_facts(self.model).head
        deployed = contextlib.nullcontext()
        if (nms_pre := test_cfg.get('deploy_nms_pre')) is not None:
            deployed = replaced_entry(test_cfg, 'nms_pre', nms_pre if nms_pre > 0 else sys.maxsize)
        with deployed:
            image_detections = super().results(images, rescale)
        if description.votes:
            return [
                of_image[~(np.isnan(of_image.bboxes_xyxy).any(1) | np.isnan(of_image.scores))]
                for of_image in image_detections
            ]
        if description.peaks:
            return [of_image[of_image.scores > 0] for of_image in image_detections]
        return image_detections

    def file_results(
        self,
        metadata: Metadata,
        outputs: Mapping[str, np.ndarray],
        feeds: Mapping[str, np.ndarray],
        images: Sequence[PreparedImage],
        rescale: bool,
    ) -> list[Detections] | None:
        if metadata.form == 'raw' and isinstance(metadata.postprocess.coder, Traced):
            head, maps = self.model.bbox_head, raw_maps(self.model, outputs)
            return own_results(head, kind_of(head), list(maps.values()), images, rescale)
        return None

    def results_left_out(self, options: Mapping[str, Any]) -> str:
        if options.get('score_form') != 'product':
            return ''
        return (
            'score_form=product stores no class scores, so detections are not compared: get_bboxes '
            'applies its threshold to class scores, not to the product'
        )

    def takes(self, picture: TensorSpec, height: int, width: int) -> bool:
        facts = model_facts(self.model)
        if facts.head.maps_by_stride:
            return super().takes(picture, height, width)
        return min(height, width) >= max(facts.strides)

    def borders(self) -> dict[str, Any]:
        kind = kind_of(self.model.bbox_head)

        def named(calls: list[Any]) -> dict[str, Any]:
            outputs = kind.flatten(kind.tested(self.model.bbox_head, calls[0]))
            return dict(zip(raw_names(self.model), outputs, strict=True))

        return {'bbox_head.forward': named}

    def candidate_bounds(
        self, feeds: Mapping[str, np.ndarray], slack: float, **_: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        facts, outputs = (
            model_facts(self.model),
            decoded(self.model, raw_maps(self.model, self.tensors(feeds, 'raw')), sizes=True),
        )
        arrays = outputs['boxes'], outputs['scores'], outputs.get(facts.head.factor)
        bounds = []
        for step in (slack, -slack):
            conf_thr = facts.head.conf_thr and facts.head.conf_thr + step
            head = dataclasses.replace(facts.head, conf_thr=conf_thr)
            moved = dataclasses.replace(facts, head=head, score_thr=facts.score_thr + step)
            counts = [
                num_candidates(DecodedPriors(*arrays)[image], outputs['level_sizes'], moved)
                for image in range(len(arrays[0]))
            ]
            bounds.append(np.asarray(counts))
        return dict(candidates=tuple(bounds))

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        maps = raw_maps(self.model, tensors)
        if not maps:
            return {}
        outputs = kind_of(self.model.bbox_head).unflatten(self.model.bbox_head, list(maps.values()))
        return {'extract_feat': None, 'bbox_head.forward': outputs}

    def counts(self, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        facts, maps = model_facts(self.model), raw_maps(self.model, tensors)
        if not maps or facts.nms_pre <= 0 or facts.head.choose == 'best':
            return {}
        outputs = decoded(self.model, maps, sizes=True)
        if facts.head.choose != 'pairs':  # priors, whatever their scores
            return dict(nms_pre=int(max(outputs['level_sizes'])))
        unlimited = dataclasses.replace(facts, nms_pre=0)
        batch = DecodedPriors(outputs['boxes'], outputs['scores'], outputs.get(facts.head.factor))
        ends, found = np.cumsum(outputs['level_sizes']), 0
        for end, size in zip(ends, outputs['level_sizes'], strict=True):
            for image in range(len(outputs['boxes'])):
                level = batch[image][end - size : end]
                found = max(found, num_candidates(level, [size], unlimited))
        return dict(nms_pre=found)


def decoded(
    model: nn.Module,
    raw: Mapping[str, torch.Tensor],
    score_form: str = 'separate',
    sizes: bool = False,
    **_: Any,
) -> dict[str, np.ndarray]:
    facts, kind = model_facts(model), kind_of(model.bbox_head)
    own = facts
    if kind.own and not kind.own_clips:
        own = dataclasses.replace(facts, coder=Traced(code=kind.own))
    outputs = decoded_outputs(model.bbox_head, own, raw)
    factor = facts.head.factor
    if score_form == 'product' and factor:
        outputs['scores'] = outputs['scores'] * outputs.pop(factor)[..., None]
    if facts.head.maps_by_stride and not sizes:
        del outputs['level_sizes']
    return outputs


def own_results(
    head: nn.Module,
    kind: HeadKind,
    maps: Sequence[torch.Tensor],
    images: Sequence[PreparedImage],
    rescale: bool,
) -> list[Detections]:
    device, detections = next(head.parameters()).device, []
    given = kind.unflatten(head, [tensor.clone().to(device) for tensor in maps])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mmdet 2.28.2 warns of its own code
        results = head.get_bboxes(*given, img_metas=metas_of(images), rescale=rescale)
    for rows, labels in results:
        boxes, labels = rows[:, :5].cpu().numpy(), labels.cpu().numpy()
        kept = ~np.isnan(boxes).any(1) & (boxes[:, 4] > 0)
        detections.append(Detections(boxes[kept, :4], boxes[kept, 4], labels[kept]))
    return detections


def raw_maps(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return given_to(model, tensors, raw_names(model))
