"""RT-DETR in PyTorch, unpatched.

Glossary: B batch, Q queries, N tokens of the encoder, D embedding, h, w map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.families.rtdetr import graphs
from mmdeploy_ext.families.rtdetr.graphs import HEADS, RAW_NAMES
from mmdeploy_ext.families.rtdetr.runtime import check_tokens, count_tokens
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.tensors import TensorSpec


class RtDetrReference(ImageReference):
    def tensors(
        self, feeds: Mapping[str, np.ndarray], form: str, tokens: torch.Tensor | None = None, **_: Any
    ) -> dict[str, np.ndarray]:
        with torch.no_grad():
            images = _to_model(self.model, feeds['images'])
            outputs = self.model.decoder(self.model.extract_feat(images), tokens)
        return {name: tensor.cpu().numpy() for name, tensor in zip(RAW_NAMES, outputs, strict=True)}

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
        graphs.feeds(images, rescale)  # refuses pictures that were padded
        check_tokens((len(images), *images[0].tensor.shape), int(self.model.decoder.num_queries))
        return super().results(images, rescale)

    def takes(self, picture: TensorSpec, height: int, width: int) -> bool:
        if count_tokens(height, width) < int(self.model.decoder.num_queries):
            return False
        return super().takes(picture, height, width)

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        for names in (HEADS, RAW_NAMES[:2]):
            if all(name in tensors for name in names):
                logits, boxes = (_to_model(self.model, tensors[name]) for name in names)
                return {'extract_feat': None, 'decoder.forward': (logits, boxes, None)}
        return {}

    def in_order(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tokens = outputs.get('tokens')
        if tokens is None:
            return dict(outputs)
        rows = np.argsort(tokens, 1)
        return {
            name: np.take_along_axis(array, rows.reshape(*rows.shape, *[1] * (array.ndim - 2)), 1)
            for name, array in outputs.items()
        }


def maps_of(model: nn.Module, images: Sequence[PreparedImage]) -> list[torch.Tensor]:
    """Return the encoder's maps (B, D, h, w), the finest first."""
    with torch.no_grad():
        return list(model.extract_feat(_to_model(model, np.stack([image.tensor for image in images]))))


def _to_model(model: nn.Module, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements='W')).to(next(model.parameters()).device)
