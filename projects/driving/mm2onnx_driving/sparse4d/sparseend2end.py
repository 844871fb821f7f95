"""Sparse4D as SparseEnd2End's C++ node loads it.

Source of the names: ThomasVonWu/SparseEnd2End 15790b6, deploy/export_{backbone,head}_onnx.py.

Glossary: N cameras, H, W network input in pixels, L levels, S cells of all maps, A instances of a frame, M
remembered ones, C channels, K classes.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera import camera_graphs, feature_maps
from mm2onnx_driving.common.camera_reference import array
from mm2onnx_driving.common.instances import map_sizes
from mm2onnx_driving.layers.sparse_instances import Pictures, Remembered, feature_rows, run_head
from mm2onnx_driving.sparse4d.family import Sparse4DReference, predictions, temporal_inputs
from mm2onnx_driving.sparse4d.runtime import CONSTANTS, FILES
from mmdeploy_ext.families.common.lidar_parts import OfModel
from mmdeploy_ext.families.contracts import Contract
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

ROWS = ColumnGroup(rtol=1e-5, atol=5e-5)
"""Tolerance of float32. Source: "Suggested tolerances" of Sparse4D's reference data, 2.5 times its bar for
slices, or 1e-5 of the largest number.
"""


class Backbone(OfModel):
    def forward(self, img: Tensor) -> tuple[Tensor]:
        return (feature_rows(feature_maps(self.model, img[0])),)


class DeployHead(nn.Module):
    """The base of the heads.

    Learned instances and anchors, sizes and starts of maps are inputs; sizes and starts have to be the
    model's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.head = model.head

    def run(self, maps: Sequence[Tensor], rig: Sequence[Tensor], *frame: Any) -> tuple[Tensor, ...]:
        lidar2img, image_wh = rig
        return run_head(self.head, Pictures(*maps, lidar2img[0], image_wh[0]), *frame)


class FirstFrame(DeployHead):
    def forward(
        self,
        feature: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        instance_feature: Tensor,
        anchor: Tensor,
        time_interval: Tensor,
        image_wh: Tensor,
        lidar2img: Tensor,
    ) -> tuple[Tensor, ...]:
        maps, learned = (feature, spatial_shapes, level_start_index), (instance_feature, anchor)
        return self.run(maps, (lidar2img, image_wh), time_interval, None, learned)


class NextFrame(DeployHead):
    def forward(
        self,
        feature: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        instance_feature: Tensor,
        anchor: Tensor,
        time_interval: Tensor,
        temp_instance_feature: Tensor,
        temp_anchor: Tensor,
        mask: Tensor,
        track_id: Tensor,
        image_wh: Tensor,
        lidar2img: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the outputs of `run`, and `track_id` (1, A), -1 for all unless `mask` is above 0."""
        maps, learned = (feature, spatial_shapes, level_start_index), (instance_feature, anchor)
        last = Remembered(temp_instance_feature, temp_anchor, mask > 0)
        outputs = self.run(maps, (lidar2img, image_wh), time_interval, last, learned)
        return (*outputs, torch.where(mask[:, None] > 0, track_id, torch.full_like(track_id, -1)))


def specs(model: nn.Module) -> list[GraphSpec]:
    """Return the contracts of the three graphs."""
    (cameras, height, width), bank = model.input_sizes, model.head.instance_bank
    instances, channels = (1, bank.num_anchor), bank.instance_feature.shape[1]
    sizes, _ = map_sizes(model)
    cells, levels = int(sizes.prod(-1).sum()), sizes.shape[1]
    near = f'1 if the last frame is at most {bank.max_time_interval:g} s away, else 0'

    def tensor(name: str, axes: tuple[int, ...], meaning: str, dtype: str = 'float32') -> TensorSpec:
        return TensorSpec(name, dtype, axes, meaning, single=True)

    pictures = (1, cameras, 3, height, width)
    rows = tensor('feature', (1, cells, channels), 'features by camera, level, row, column')
    rows = dataclasses.replace(rows, groups=(ROWS,))
    interval, *temporal = temporal_inputs(model)
    first = (
        rows,
        tensor('spatial_shapes', (cameras, levels, 2), 'height and width of each map', 'int32'),
        tensor('level_start_index', (cameras, levels), 'start of each map', 'int32'),
        tensor('instance_feature', (*instances, channels), 'head.instance_bank.instance_feature'),
        tensor('anchor', (*instances, 11), 'head.instance_bank.anchor'),
        interval,
    )
    rig = (
        tensor('image_wh', (1, cameras, 2), 'width and height of the images'),
        tensor('lidar2img', (1, cameras, 4, 4), 'LiDAR frame to pixels times depth'),
    )
    memory = (
        tensor('mask', (1,), near, 'int32'),
        tensor('track_id', instances, 'ids of the kept instances, then -1', 'int32'),
    )
    ids = tensor('pred_track_id', instances, 'track_id where mask is 1, else -1', 'int32')
    outputs = predictions(model)
    images = TensorSpec('img', 'float32', pictures, 'normalised images')
    return [
        GraphSpec('sparse4d/deploy/backbone', (images,), (rows,)),
        GraphSpec('sparse4d/deploy/first', (*first, *rig), outputs),
        GraphSpec('sparse4d/deploy/next', (*first, *temporal, *memory, *rig), (*outputs, ids)),
    ]


class NodeReference(Sparse4DReference):
    """The detector's own test path, with the pictures' features and the heads' ids."""

    def tensors(self, values: Mapping[str, Any], was_reset: bool) -> dict[str, np.ndarray]:
        tensors, num_temp = super().tensors(values, was_reset), self.bank.num_temp_instances
        ids = np.full_like(tensors['instance_id'], -1, np.int32)
        if not was_reset:
            ids[:, :num_temp] = tensors['instance_id'][:, :num_temp]
        return dict(tensors, feature=array(values['rows']), pred_track_id=ids)


class SparseEnd2EndFiles(Contract):
    """The three graphs, and the constants of the heads."""

    files = FILES

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        modules = Backbone(model), FirstFrame(model), NextFrame(model)
        graphs = camera_graphs(model, options, list(zip(FILES, modules, specs(model), strict=True)))
        device = next(model.parameters()).device
        sizes, starts = (values.to(device) for values in map_sizes(model))
        for graph in graphs[1:]:
            graph.example.update(spatial_shapes=sizes, level_start_index=starts)
        return graphs

    def reference(self, model: nn.Module) -> NodeReference:
        return NodeReference(model)

    def companions(self, model: nn.Module) -> dict[str, str]:
        bank, (sizes, starts) = model.head.instance_bank, map_sizes(model)
        # the names and shapes that the node of this contract reads; sizes are height, width of each map
        values = dict(
            instance_feature=bank.instance_feature,
            anchor=bank.anchor,
            spatial_shapes=sizes,
            level_start_index=starts,
        )
        rows = (f'"{name}": {json.dumps(value.detach().cpu().tolist())}' for name, value in values.items())
        return {CONSTANTS: '{' + ',\n'.join(rows) + '}\n'}
