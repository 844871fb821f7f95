"""Tokens that become queries, as a list of their own: behind a decoder most of their faults are hidden.

A two-stage Deformable DETR, H-DETR, DINO and Co-DINO score all tokens of the encoder; the boxes of the best
are what queries begin with. mmdet's transformer is watched as it chooses them, and its decoder does not run.

Glossary: B batch, H, W network input in pixels, S tokens of all levels, Q queries, D embedding, h, w size of
a map.
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
from mmdeploy_ext.exporting.postprocess.sizes import hw
from mmdeploy_ext.families.parts.image_tensors import PROPOSALS, SCORED_PROPOSALS
from mmdeploy_ext.families.parts.mmdet_reference import boxes_of_classes, metas_of, tested
from mmdeploy_ext.families.parts.padding import PaddedMap
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
"""Input of the stage that chooses tokens: the tokens of the encoder."""


def chooses_tokens(transformer: nn.Module) -> bool:
    """Return whether the `forward` of a transformer is one that is known to choose its queries."""
    if not getattr(transformer, 'as_two_stage', False):
        return False
    owner = next(kind for kind in type(transformer).__mro__ if 'forward' in vars(kind))
    return owner.__name__ in TRANSFORMERS


class QueryTokensForm(nn.Module):
    """The choice of the tokens that become queries, behind flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = NETWORKS[supported_parts.kind_of(query_head(model))](model)

    def forward(
        self, image: torch.Tensor, img_shape: torch.Tensor, memory: torch.Tensor, *maps: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """Return boxes xyxy with a score 0..1 (B, Q, 5) of the tokens with the best scores, best first.

        A box is in shares of the part of `content_size`, the image without its padding or, of some Co-DETR,
        with it, times width and height of the whole input: if there is no padding these are its pixels. The
        score is that of the best class, in a Deformable DETR or H-DETR that of the first one.

        Args:
            image: (B, 3, H, W); only its size is used.
            img_shape: (B, 2) height and width of the images before padding, as `content_size` takes them; 0
                means the input size.
            memory: (B, S, D) tokens of the encoder.
            maps: input maps (B, D, h, w) of the transformer, level by level; only their sizes are used.
        """
        content = content_size(self.network.model, image, img_shape)
        levels = [PaddedMap(content, image, level_map) for level_map in maps]
        boxes, logits = self.network.best_tokens(memory, levels, tokens_inside(levels))
        corners = cxcywh_to_xyxy(boxes) * hw(image).to(boxes).flip(0).repeat(2)
        return (torch.cat([corners, logits.sigmoid()[..., None]], 2),)


def stage_of(model: nn.Module) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
    """Return the stage that chooses tokens alone, and its output's spec, `SCORED_PROPOSALS` (1, K, 5).

    K is Q. Its inputs are `input`, `img_shape`, `memory` and a map of each level, `map_0` and so on.
    """
    inputs = ('input', 'img_shape', MEMORY, *_map_names(model))
    return [Stage(PROPOSALS, QueryTokensForm(model), inputs, (PROPOSALS,))], (SCORED_PROPOSALS,)


def inputs_of(model: nn.Module, images: Sequence[PreparedImage]) -> dict[str, np.ndarray]:
    """Return the maps and tokens that the stage of `stage_of` takes, by name, from the model's own layers."""
    record = recorded(model, images)
    maps = zip(_map_names(model), record.maps, strict=True)
    memory = record.memory.transpose(0, 1)
    return {name: tensor.cpu().numpy() for name, tensor in (*maps, (MEMORY, memory))}


def chosen_boxes(model: nn.Module, images: Sequence[PreparedImage]) -> list[Detections]:
    """Return the boxes of the tokens that the unpatched transformer chooses, per image.

    They are as those of `QueryTokensForm.forward`, in the order of scores, with the label 0; the images have
    one size, that of the network input.
    """
    record = recorded(model, images)
    (height, width), scores = images[0].tensor.shape[1:], record.best[-1].values.sigmoid()
    corners = cxcywh_to_xyxy(record.boxes) * record.boxes.new_tensor([width, height, width, height])
    rows = torch.cat([corners, scores[..., None]], 2).cpu().numpy()
    return [boxes_of_classes([rows_of_image]) for rows_of_image in rows]


def _map_names(model: nn.Module) -> list[str]:
    """Return names for the input maps of the transformer."""
    return [f'map_{level}' for level in range(len(query_head(model).transformer.level_embeds))]


class DecoderReached(Exception):
    """Ends a run before its decoder."""


class TransformerRecord(TorchFunctionMode):
    """Records the tensors of a transformer until its decoder begins.

    Attributes:
        maps: its inputs (B, D, h, w).
        memory: (S, B, D), the result of its encoder.
        best: results of `topk`, the last of which is the choice of tokens.
        boxes: (B, Q, 4) cxcywh, shares of the part of `content_size`, an input of its decoder.
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
        """Keep the input maps of a transformer, its first argument: a hook before its `forward`."""
        self.maps = args[0]

    def after_encoder(self, module: nn.Module, args: Any, memory: torch.Tensor) -> None:
        """Keep the result of an encoder: a hook behind its `forward`."""
        self.memory = memory

    def at_decoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> NoReturn:
        """Keep the input boxes of a decoder, and end the run: a hook before its `forward`."""
        self.boxes = kwargs['reference_points']
        raise DecoderReached


def recorded(model: nn.Module, images: Sequence[PreparedImage]) -> TransformerRecord:
    """Return what the detector's own test path computes of images until its decoder begins."""
    head = query_head(model)
    transformer, record = head.transformer, TransformerRecord()
    with contextlib.ExitStack() as stack:
        # a proof that remembers results of parts would not run them
        forward = types.MethodType(type(head).forward, head)
        stack.enter_context(replaced_entry(vars(head), 'forward', forward))
        stack.enter_context(transformer.register_forward_pre_hook(record.at_transformer))
        stack.enter_context(transformer.encoder.register_forward_hook(record.after_encoder))
        stack.enter_context(
            transformer.decoder.register_forward_pre_hook(record.at_decoder, with_kwargs=True)
        )
        stack.enter_context(contextlib.suppress(DecoderReached))
        stack.enter_context(record)
        tested(model, images, metas_of(images), rescale=True)
    return record
