"""DINO: the parts of mmdet 3 that mmdet 2.28 lacks, around its Deformable DETR, with their names inside it.

A result needs the last layer alone, in PyTorch as in the graph: both run `DinoNetwork`, so that a proof does
not see its faults; tests hold it to what mmdet 3 gave (`tests/dino_golden.py`). Source of names,
shapes and algorithm: mmdet 3.3.0 `detectors/dino.py`, `layers/transformer/dino_layers.py`.
"""

import types
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmdet.models.builder import DETECTORS, HEADS
from mmdet.models.utils.builder import TRANSFORMER
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.parts.padding import Level
from mmdeploy_ext.families.parts.query_networks import DinoNetwork
from mmdeploy_ext.models.catalogue import offered

dense_heads, detectors = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.models.detectors')
transformer = mmdet_module('mmdet.models.utils.transformer')

TRAINS = 'DINO is trained by mmdet 3: its head has no loss here'


@offered(DETECTORS)
class DINO(detectors.DeformableDETR):
    """Deformable DETR whose head is `DINOHead`."""


@offered(TRANSFORMER_LAYER_SEQUENCE)
class DinoTransformerDecoder(transformer.DeformableDetrTransformerDecoder):
    """The layers of Deformable DETR; places of queries come from their boxes, before each layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        size = self.embed_dims
        self.ref_point_head = nn.Module()
        self.ref_point_head.layers = nn.ModuleList([nn.Linear(2 * size, size), nn.Linear(size, size)])
        self.norm = nn.LayerNorm(self.embed_dims)


@offered(TRANSFORMER)
class DinoTransformer(transformer.DeformableDetrTransformer):
    """That of a two-stage Deformable DETR; proposals are not encoded as queries, which are learned."""

    def init_layers(self) -> None:
        """Build what is beside encoder and decoder."""
        super().init_layers()
        del self.pos_trans, self.pos_trans_norm


@offered(HEADS)
class DINOHead(dense_heads.DeformableDETRHead):
    """The branches of a two-stage Deformable DETR with box refinement, and its queries."""

    def __init__(self, *args: Any, transformer: Mapping[str, Any], **kwargs: Any) -> None:
        """Build it; ConfigError: one stage, or no refinement."""
        for key in ('as_two_stage', 'with_box_refine'):
            if not kwargs.get(key, False):
                raise ConfigError(f'model.bbox_head.{key}=False: expected True, as DINO has it')
        super().__init__(*args, transformer=dict(transformer), **kwargs)
        self.query_embedding = nn.Embedding(self.num_query, self.embed_dims)

    def forward(
        self, mlvl_feats: Sequence[torch.Tensor], img_metas: Sequence[Mapping[str, Any]]
    ) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        """Return class logits (1, B, Q, C) and boxes cxcywh (1, B, Q, 4) of the last layer.

        Of maps (B, D, h, w) of the neck, and `batch_input_shape` and `img_shape` of each image.
        """
        first = mlvl_feats[0]
        content = first.new_tensor([meta['img_shape'][:2] for meta in img_metas])
        image = first.new_empty((len(img_metas), 3, *img_metas[0]['batch_input_shape']), device='meta')
        levels = [Level(content, image, one) for one in mlvl_feats]
        network = DinoNetwork(types.SimpleNamespace(bbox_head=self)).to(first.device)
        logits, boxes = network.queries(mlvl_feats, levels)
        return logits[None], boxes[None], None, None

    def loss(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to train."""
        raise NotImplementedError(TRAINS)
