"""The user's detector, as mmdet runs it: `forward` of whole images."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.exporting.traced.functions import ranked
from mmdeploy_ext.families.common.mmdet_reference import (
    boxes_of_classes,
    instances_of_classes,
    metas_of,
    tested,
)
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage


class TracedReference(ImageReference):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.last: tuple[Sequence[PreparedImage], bool] = (), True

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Detections] | list[Instances]:
        self.last = images, rescale
        metas = metas_of(images)
        for meta in metas:  # the graph divides by a scale of 1 without `scale_factor`
            meta['scale_factor'] = np.asarray(meta['scale_factor'] if rescale else np.ones(4), np.float32)
        found = tested(self.model, images, metas, rescale=True)
        return [results_of(result, image) for result, image in zip(found, images, strict=True)]

    def inner_tensors(
        self, tensors: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Inputs of rankings, thresholds and suppressions, each behind the file's earlier ones."""
        with ranked(self.model, as_tensors(tensors)) as mode, contextlib.suppress(Exception):
            self.results(*self.last)  # mmcv's NMS refuses float64
        expected = {name: tensor.cpu().numpy() for name, tensor in mode.found.items() if tensor.numel()}
        names = [name for name in expected if name in tensors and tensors[name].shape == expected[name].shape]
        sides = expected, tensors
        return tuple(
            {name: mode.decisive.get(name, np.asarray)(side[name]) for name in names} for side in sides
        )

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        given, own = as_tensors(tensors), self.model.simple_test

        def simple_test(*args: Any, **kwargs: Any) -> Any:
            with ranked(self.model, given):
                return own(*args, **kwargs)

        return {'simple_test': simple_test}


def as_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    floats = {name: array for name, array in tensors.items() if array.dtype == np.float32}
    return {name: torch.from_numpy(np.array(array)) for name, array in floats.items()}


def results_of(result: Any, image: PreparedImage) -> Detections | Instances:
    if not isinstance(result, tuple):
        return boxes_of_classes(result)
    return instances_of_classes(*result, tuple(image.ori_shape))
