"""MaskFormer and Mask2Former as mmdet runs them, unpatched."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.families.common.mmdet_reference import given_to, instances_of_classes, metas_of, tested
from mmdeploy_ext.families.query import masks, supported_parts
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.runtime.detections import Instances
from mmdeploy_ext.runtime.panoptic import Segments
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage


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
