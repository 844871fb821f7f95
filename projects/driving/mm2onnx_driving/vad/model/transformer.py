"""VAD's transformer: containers of parameters, which `steps.py` runs.

Source: hustvl/VAD 1688c4b, `VAD/VAD_transformer.py`.
"""

from typing import Any

from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import build_transformer_layer_sequence
from mmdet.models.utils.builder import TRANSFORMER
from torch import nn

from mm2onnx_driving.layers.bev_view.transformer import (
    DetectionTransformerDecoder,
    PerceptionTransformer,
)
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(TRANSFORMER_LAYER_SEQUENCE)
class MapDetectionTransformerDecoder(DetectionTransformerDecoder):
    """The layers of the decoder of lines."""


@registered_if_named(TRANSFORMER_LAYER_SEQUENCE)
class CustomTransformerDecoder(DetectionTransformerDecoder):
    """Layers that attend to the same tokens."""


@registered_if_named(TRANSFORMER)
class VADPerceptionTransformer(PerceptionTransformer):
    """Encoder, decoders of objects and of lines, and shared embeddings."""

    def __init__(self, map_decoder: dict, **settings: Any) -> None:
        super().__init__(**settings)
        self.map_decoder = build_transformer_layer_sequence(map_decoder)
        self.map_reference_points = nn.Linear(self.embed_dims, 2)
