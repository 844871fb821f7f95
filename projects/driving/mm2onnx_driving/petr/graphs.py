"""The graphs of PETR and PETRv2: pictures to features, calibration to positions, both to objects.

Glossary: N cameras of a frame, F frames (PETR 1, PETRv2 2), H, W network input in pixels, h, w feature map, C
channels, L decoder layers, R queries, K classes. Box codes: `predict` of `steps.py`.
"""

import dataclasses

import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera_graphs import camera_graphs, feature_maps, map_shapes
from mm2onnx_driving.common.runtime.query_boxes import output_specs
from mm2onnx_driving.petr.runtime import PORTABLE_FILES
from mm2onnx_driving.petr.steps import (
    detect,
    embed_counts,
    embed_rays,
    padding_mask,
    query_positions,
    token_corners,
)
from mmdeploy_ext.families.common.lidar_parts import OfModel
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

EXACT = ColumnGroup(rtol=0.0, atol=0.0)
FEATURES = ColumnGroup(rtol=0.0, atol=1e-4)
POSITIONS = ColumnGroup(rtol=0.0, atol=5e-3)
LOGITS = ColumnGroup('logits', unit='logit', rtol=0.0, atol=1e-3)
BOXES = (
    ColumnGroup('x y', (0, 1), 'm', 0.0, 5e-3),
    ColumnGroup('z, log size', (2, 3, 4, 5), '', 0.0, 1e-3),
    ColumnGroup('sin cos yaw', (6, 7), '', 0.0, 1e-3),
    ColumnGroup('velocity', (8, 9), 'm/s', 0.0, 1e-3),
)
"""Tolerances of float32. Source: "Suggested tolerances" of the reference data of PETRv2."""


def frames_of(model: nn.Module) -> int:
    return 2 if hasattr(model.pts_bbox_head, 'fpe') else 1


class ExtractImgFeat(OfModel):
    """Backbone and neck."""

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        """Return the first feature map (1, N, C, h, w) of pictures (N, 3, H, W)."""
        return (feature_maps(self.model, img)[0].unsqueeze(0),)


class PositionEmbedding(OfModel):
    """Positions of tokens by their rays; `size` is H, W, `map_size` h, w."""

    def __init__(self, model: nn.Module, size: tuple[int, int], map_size: tuple[int, int]) -> None:
        super().__init__(model)
        self.map_size = map_size
        self.register_buffer('corners', token_corners(size, map_size), persistent=False)

    def forward(self, img2lidar: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions (1, N, C, h, w) of matrices (1, N, 4, 4), and a copy of the matrices."""
        rays = embed_rays(self.model.pts_bbox_head, img2lidar[0], self.corners, self.map_size)
        return rays.unsqueeze(0), img2lidar + 0.0


class Head(OfModel):
    """The head behind features and positions; sine part and query positions are constants."""

    def __init__(self, model: nn.Module, padding: Tensor) -> None:
        super().__init__(model)
        head = model.pts_bbox_head
        device = head.reference_points.weight.device
        with torch.no_grad():
            constants = dict(sine_part=embed_counts(head, padding), queries=query_positions(head))
        for name, values in constants.items():
            self.register_buffer(name, values.detach().to(device), persistent=False)
        self.register_buffer('padding', padding.to(device) if padding.any() else None, persistent=False)

    def detect(self, features: Tensor, rays: Tensor, seconds: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return logits (L, 1, R, K) and box codes (L, 1, R, 10) of features and rays (1, F N, C, h, w).

        `seconds` (1,) is the mean time since the frame before; PETR: 1.
        """
        constants = self.sine_part, self.queries, self.padding
        return detect(self.model.pts_bbox_head, features[0], rays[0], *constants, seconds)


class PtsHead(Head):
    """The head; logits are NaN if an embedding was made with another calibration."""

    def forward(
        self,
        img_feats: Tensor,
        pos_embed: Tensor,
        embedded_img2lidar: Tensor,
        img2lidar: Tensor,
        *before: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (L, 1, R, K) and box codes (L, 1, R, 10).

        PETRv2: `before` are the four inputs of the frame before, and `mean_time_stamp` (1,), seconds.
        """
        stale, seconds = difference_of(embedded_img2lidar, img2lidar), 1.0
        if before:
            features, positions, embedded, matrices, seconds = before
            img_feats = torch.cat([img_feats, features], 1)
            pos_embed = torch.cat([pos_embed, positions], 1)
            stale = stale + difference_of(embedded, matrices)
        logits, boxes = self.detect(img_feats, pos_embed, seconds)
        return torch.where(stale > 0, torch.full_like(logits, float('nan')), logits), boxes


def difference_of(embedded: Tensor, matrices: Tensor) -> Tensor:
    return (embedded - matrices).abs().max()


class Sizes:
    """Numbers that determine all shapes.

    Attributes:
        levels: (C, h, w) of each feature map; the head takes the first.
        map_size: (h, w) of the first level.
        positions: channels of the embedding.
    """

    def __init__(self, model: nn.Module) -> None:
        head = model.pts_bbox_head
        self.cameras, self.height, self.width = model.input_sizes
        self.frames = frames_of(model)
        self.levels = map_shapes(model, self.height, self.width)
        self.map_size = self.levels[0][1:]
        self.positions, self.layers = int(head.embed_dims), len(head.transformer.decoder.layers)
        self.queries, self.classes = int(head.num_query), int(head.num_classes)


def predictions(size: Sizes) -> tuple[TensorSpec, TensorSpec]:
    """Return the specs of logits (L, 1, R, K) and box codes (L, 1, R, 10)."""
    return output_specs((size.layers, 1, size.queries), size.classes, (LOGITS,), BOXES)


def embedding_spec(size: Sizes) -> GraphSpec:
    matrices = (1, size.cameras, 4, 4)
    inverse = 'inverses of lidar2img, computed in float64: pixels times depth to the current LiDAR frame'
    axes = (1, size.cameras, size.positions, *size.map_size)
    per_rig = 'position embedding of the tokens; recompute it when img2lidar or the image size changes'
    copied = 'img2lidar that pos_embed was computed from; the head rejects another one'
    return GraphSpec(
        'petr/position_embedding',
        (TensorSpec('img2lidar', 'float32', matrices, inverse, single=True),),
        (
            TensorSpec('pos_embed', 'float32', axes, per_rig, groups=(POSITIONS,)),
            TensorSpec('embedded_img2lidar', 'float32', matrices, copied, groups=(EXACT,), single=True),
        ),
    )


def portable(size: Sizes) -> list[GraphSpec]:
    embedding = embedding_spec(size)
    features = TensorSpec(
        'img_feats', 'float32', (1, size.cameras, *size.levels[0]), 'feature map', groups=(FEATURES,)
    )
    image = (size.cameras, 3, size.height, size.width)
    images = TensorSpec('img', 'float32', image, 'normalised images, padded bottom and right')
    inputs = [features, *embedding.outputs, embedding.inputs[0]]
    if size.frames > 1:
        before = 'of the previous frame; at the first frame of a scene, of the current frame'
        meanings = {tensor.name: f'{tensor.meaning}; {before}' for tensor in inputs}
        meanings['img2lidar'] = 'pixels times depth of the previous frame to the current LiDAR frame'
        inputs += [
            dataclasses.replace(tensor, name=f'prev_{tensor.name}', meaning=meanings[tensor.name])
            for tensor in inputs
        ]
        time = 'time since the previous frame, mean over the cameras; 1.245 at the first frame of a scene'
        inputs.append(TensorSpec('mean_time_stamp', 'float32', (1,), time, 's', single=True))
    return [
        GraphSpec('petr/extract_img_feat', (images,), (features,)),
        embedding,
        GraphSpec('petr/pts_head', tuple(inputs), predictions(size)),
    ]


def padding_of(model: nn.Module, size: Sizes) -> Tensor:
    pictures = [model.picture_size] * size.cameras * size.frames
    return padding_mask(pictures, (size.height, size.width), size.map_size)


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    size = Sizes(model)
    modules = (
        ExtractImgFeat(model),
        PositionEmbedding(model, (size.height, size.width), size.map_size),
        PtsHead(model, padding_of(model, size)),
    )
    return camera_graphs(model, options, list(zip(PORTABLE_FILES, modules, portable(size), strict=True)))
