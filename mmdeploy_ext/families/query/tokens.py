"""Tokens that become queries, as a list of their own: what decoders make of them hides most of their faults.

A two-stage Deformable DETR, DINO and Co-DINO score all tokens of the encoder; the boxes of the best are what
queries begin with. mmdet's transformer is watched as it chooses them, and its decoder does not run.

Glossary: B batch, S tokens of all levels, Q queries, D embedding.
"""

import contextlib
import types
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.contract.spec import TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.exporting.postprocess.sizes import hw
from mmdeploy_ext.families.parts.image_tensors import PROPOSALS, SCORED_PROPOSALS
from mmdeploy_ext.families.parts.mmdet_reference import boxes_of_classes, metas_of, tested
from mmdeploy_ext.families.parts.padding import Level
from mmdeploy_ext.families.parts.query_networks import NETWORKS, content_size, query_head, tokens_inside
from mmdeploy_ext.families.query import supported_parts
from mmdeploy_ext.models.rtdetr.boxes import cxcywh_to_xyxy
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections

LIMIT = 'two_stage_num_proposals'
"""Attribute of transformers: how many tokens become queries."""
TRANSFORMERS = ('DeformableDetrTransformer', 'DinoTransformer', 'CoDinoTransformer')
"""Classes whose `forward` chooses tokens by `topk` and gives their boxes to the decoder."""
MEMORY = 'memory'


def chooses_tokens(transformer: nn.Module) -> bool:
    """Return whether the `forward` of a transformer is one that is known to choose its queries."""
    if not getattr(transformer, 'as_two_stage', False):
        return False
    owner = next(kind for kind in type(transformer).__mro__ if 'forward' in vars(kind))
    return owner.__name__ in TRANSFORMERS


class TokensForm(nn.Module):
    """What chooses the tokens that become queries, behind flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = NETWORKS[supported_parts.kind_of(query_head(model))](model)

    def forward(
        self, image: torch.Tensor, img_shape: torch.Tensor, memory: torch.Tensor, *maps: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """Return boxes with scores (B, Q, 5) xyxy, as if the image filled the input.

        Of tokens (B, S, D) that the encoder gives; images and maps have sizes alone.
        """
        content = content_size(self.network.model, image, img_shape)
        levels = [Level(content, image, one) for one in maps]
        boxes, logits = self.network.best_tokens(memory, levels, tokens_inside(levels))
        corners = cxcywh_to_xyxy(boxes) * hw(image).to(boxes).flip(0).repeat(2)
        return (torch.cat([corners, logits.sigmoid()[..., None]], 2),)


def stage_of(model: nn.Module) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
    """Return the stage that chooses tokens alone, and its output."""
    inputs = ('input', 'img_shape', MEMORY, *_map_names(model))
    return [Stage(PROPOSALS, TokensForm(fuse(model)), inputs, (PROPOSALS,))], (SCORED_PROPOSALS,)


def inputs_of(model: nn.Module, images: Sequence[PreparedImage]) -> dict[str, np.ndarray]:
    """Return what the stage takes besides pictures, by the model's own layers."""
    watch = watched(model, images)
    maps = zip(_map_names(model), watch.maps, strict=True)
    memory = watch.memory.transpose(0, 1)
    return {name: one.cpu().numpy() for name, one in (*maps, (MEMORY, memory))}


def chosen(model: nn.Module, images: Sequence[PreparedImage]) -> list[Detections]:
    """Return the boxes of the tokens that the unpatched transformer chooses, per image; see `TokensForm`."""
    watch = watched(model, images)
    (height, width), scores = images[0].tensor.shape[1:], watch.best[-1].values.sigmoid()
    corners = cxcywh_to_xyxy(watch.boxes) * watch.boxes.new_tensor([width, height, width, height])
    rows = torch.cat([corners, scores[..., None]], 2).cpu().numpy()
    return [boxes_of_classes([one]) for one in rows]


def _map_names(model: nn.Module) -> list[str]:
    """Return the names of the maps that the transformer takes."""
    return [f'map_{level}' for level in range(len(query_head(model).transformer.level_embeds))]


class DecoderReached(Exception):
    """Ends a run of which only what comes before the decoder is wanted."""


class Watch(TorchFunctionMode):
    """What a transformer gives until its decoder begins.

    Attributes:
        maps: (B, D, h, w) that it takes.
        memory: (S, B, D) of its encoder.
        best: results of `topk`, the last of which is the choice of tokens.
        boxes: (B, Q, 4) cxcywh that its decoder takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps: Sequence[torch.Tensor] = ()
        self.memory: torch.Tensor | None = None
        self.best: list[Any] = []
        self.boxes: torch.Tensor | None = None

    def __torch_function__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.topk, torch.Tensor.topk):
            self.best.append(result)
        return result

    def at_transformer(self, module: nn.Module, args: Any) -> None:
        """Keep the maps that a transformer is given."""
        self.maps = args[0]

    def after_encoder(self, module: nn.Module, args: Any, memory: torch.Tensor) -> None:
        """Keep what an encoder gives."""
        self.memory = memory

    def at_decoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> NoReturn:
        """Keep the boxes that a decoder is given, which does not run."""
        self.boxes = kwargs['reference_points']
        raise DecoderReached


def watched(model: nn.Module, images: Sequence[PreparedImage]) -> Watch:
    """Run the detector's own test path up to its decoder."""
    head = query_head(model)
    own, watch = head.transformer, Watch()
    with contextlib.ExitStack() as stack:
        # a proof that remembers what parts give would not run them
        forward = types.MethodType(type(head).forward, head)
        stack.enter_context(replaced_entry(vars(head), 'forward', forward))
        stack.enter_context(own.register_forward_pre_hook(watch.at_transformer))
        stack.enter_context(own.encoder.register_forward_hook(watch.after_encoder))
        stack.enter_context(own.decoder.register_forward_pre_hook(watch.at_decoder, with_kwargs=True))
        stack.enter_context(contextlib.suppress(DecoderReached))
        stack.enter_context(watch)
        tested(model, images, metas_of(images), True)
    return watch
