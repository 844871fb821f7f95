"""PETR and PETRv2 as NVIDIA's DL4AGX loads them.

Source of names, ranks and shapes: NVIDIA/DL4AGX 482b3f5, AV-Solutions/petr-trt.

Glossary: N cameras of a frame, C channels, h, w feature map, L decoder layers, R queries, K classes.
"""

import dataclasses

import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera import camera_graphs, feature_maps
from mm2onnx_driving.petr.family import (
    FEATURES,
    Head,
    PetrReference,
    PositionEmbedding,
    Sizes,
    embedding_spec,
    padding_of,
    predictions,
)
from mm2onnx_driving.petr.runtime import (
    BOUND_NAMES,
    BOUND_POSITIONS,
    BOUND_TIME,
    bound_files,
    bound_note,
)
from mmdeploy_ext.families.common.lidar_parts import OfModel
from mmdeploy_ext.families.contracts import PUBLISHED, Contract
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec


class BoundFeatures(OfModel):
    """Backbone and neck: all levels, the earlier frame's behind the present ones."""

    def forward(self, img: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        """Return the map of each level."""
        maps = feature_maps(self.model, img)
        if not before:
            return tuple(level.unsqueeze(1) for level in maps)
        pairs = zip(maps, before, strict=True)
        return tuple(torch.cat([level.unsqueeze(0), last], 1) for level, last in pairs)


class BoundHead(Head):
    """The head; its caller computes positions and times."""

    def forward(self, features: Tensor, positions: Tensor, *seconds: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (L, 1, R, K) and box codes (L, 1, R, 10)."""
        return self.detect(features, positions, seconds[0] if seconds else 1.0)


def bound(size: Sizes) -> list[GraphSpec]:
    """Return the contracts of the two graphs, then of the positions, which the caller computes."""
    cameras, twice = size.cameras, size.frames > 1
    image = (cameras, 3, size.height, size.width)
    images = TensorSpec('img', 'float32', image, 'normalised images, padded bottom and right')
    inputs, outputs = [images], []
    for number, level in enumerate(size.levels):
        axes, meaning = (cameras, 1, *level), f'feature map of level {number}'
        if twice:
            axes, meaning = (1, 2 * cameras, *level), f'{meaning}: current cameras, then prev.{number}'
            last = f'first {cameras} cameras of out.{number} of the previous frame'
            inputs.append(TensorSpec(f'prev.{number}', 'float32', (1, cameras, *level), last))
        outputs.append(TensorSpec(f'out.{number}', 'float32', axes, meaning, groups=(FEATURES,)))
    tokens = size.frames * cameras
    positions = 'pos_embed of all cameras; recompute it whenever calibration, motion or time gap changes'
    head_inputs = [
        TensorSpec('mlvl_feats.0', 'float32', (1, tokens, *size.levels[0]), 'out.0'),
        TensorSpec(
            BOUND_POSITIONS,
            'float32',
            (1, tokens, size.positions, *size.map_size),
            positions,
        ),
    ]
    if twice:
        time = 'time since the previous frame, mean over the cameras; different for every frame'
        head_inputs.append(TensorSpec(BOUND_TIME, 'float32', (1,), time, 's', single=True))
    head_outputs = tuple(
        dataclasses.replace(tensor, name=BOUND_NAMES[tensor.name]) for tensor in predictions(size)
    )
    features_name, head_name, _ = bound_files(size.frames)
    return [
        GraphSpec(f'petr/{features_name}', tuple(inputs), tuple(outputs)),
        GraphSpec(f'petr/{head_name}', tuple(head_inputs), head_outputs),
        embedding_spec(size),
    ]


class Dl4agxFiles(Contract):
    settings = PUBLISHED

    @property
    def files(self) -> tuple[str, ...]:
        return bound_files(self.family.frames)

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        size = Sizes(model)
        head = BoundHead(model, padding_of(model, size))
        embedding = PositionEmbedding(model, (size.height, size.width), size.map_size)
        modules = BoundFeatures(model), head, embedding
        return camera_graphs(model, options, list(zip(self.files, modules, bound(size), strict=True)))

    def reference(self, model: nn.Module) -> PetrReference:
        return PetrReference(model, [bound_note(self.family.frames)])

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        return predictions(Sizes(model))
