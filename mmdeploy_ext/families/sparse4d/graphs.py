"""Sparse4D's contracts: `portable`, one graph for all frames, and `deploy`, the files of a C++ node.

Outside of both are the memory, the projection of its anchors, the ids of tracks and the decoding: `runtime/`.

Source of the names of `deploy`: ThomasVonWu/SparseEnd2End 15790b6, deploy/export_{backbone,head}_onnx.py.
Differs in: no `tmp_outs`, which its plugin needs because it never clears its output.

Glossary: N cameras, H, W network input in pixels, L levels, S cells of all maps, A instances of a frame, M
remembered ones, C channels, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import ColumnGroup, Graph, GraphSpec, TensorSpec
from mmdeploy_ext.families.parts.camera_graphs import feature_maps, map_shapes
from mmdeploy_ext.families.parts.lidar_parts import OfModel
from mmdeploy_ext.families.parts.traced_inputs import with_examples
from mmdeploy_ext.families.sparse4d.options import DEPLOY
from mmdeploy_ext.families.sparse4d.runtime.model import BACKBONE, FIRST, NEXT, PORTABLE
from mmdeploy_ext.models.sparse4d import steps
from mmdeploy_ext.models.sparse4d.steps import Pictures, Remembered, feature_rows, run_head
from mmdeploy_ext.proving.half_bars import widened

FEATURES = ColumnGroup(rtol=0.0, atol=1e-3)
LOGITS = ColumnGroup('logits', unit='logit', rtol=0.0, atol=1e-3)
ANCHORS = (
    ColumnGroup('xyz', (0, 1, 2), 'm', 0.0, 5e-3),
    ColumnGroup('log size', (3, 4, 5), '', 0.0, 1e-3),
    ColumnGroup('sin cos yaw', (6, 7), '', 0.0, 1e-3),
    ColumnGroup('velocity', (8, 9, 10), 'm/s', 0.0, 1e-3),
)
ROWS = ColumnGroup(rtol=1e-5, atol=5e-5)
"""Tolerances of float32. Source: "Suggested tolerances" of the reference data of Sparse4D. That data compares
slices of the rows of features; here all numbers of them are compared, with 2.5 times its bar, or 1e-5 of the
largest number if that is more."""


def map_sizes(model: nn.Module, cameras: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return `Pictures.sizes` and `starts` for pictures of so many pixels, by running the network once."""
    return steps.map_sizes([shape[1:] for shape in map_shapes(model, height, width)], cameras)


class PortableFrame(nn.Module):
    """One frame, whether it is the first one or not; the sizes of maps are constants."""

    def __init__(self, model: nn.Module, size: tuple[int, int, int], grid_sample: bool) -> None:
        """Keep the model; `size` is N, H and W.

        With `grid_sample` a graph of standard operators samples the maps by GridSample, else by gathers.
        """
        super().__init__()
        self.model, self.size, self.grid_sample = model, size, grid_sample
        sizes, starts = map_sizes(model, *size)
        self.register_buffer('sizes', sizes, persistent=False)
        self.register_buffer('starts', starts, persistent=False)

    def forward(
        self,
        img: Tensor,
        lidar2img: Tensor,
        time_interval: Tensor,
        temp_instance_feature: Tensor,
        temp_anchor: Tensor,
        mask: Tensor,
        has_temp: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return features, anchors, class logits and quality logits; see `specs`."""
        cameras, height, width = self.size
        image_wh = lidar2img.new_tensor([[width, height]] * cameras)
        rows = feature_rows(feature_maps(self.model, img))
        pictures = Pictures(rows, self.sizes, self.starts, lidar2img, image_wh, self.grid_sample)
        last = Remembered(temp_instance_feature, temp_anchor, mask > 0.5, has_temp > 0.5)
        return run_head(self.model.head, pictures, time_interval, last)


class Backbone(OfModel):
    """Pictures to features."""

    def forward(self, img: Tensor) -> tuple[Tensor]:
        """Return the features (1, S, C) of normalised pictures (1, N, 3, H, W)."""
        return (feature_rows(feature_maps(self.model, img[0])),)


class DeployHead(nn.Module):
    """The base of the heads of `deploy`.

    Learned instances and anchors, which a checkpoint has, and the sizes and beginnings of maps are inputs, as
    the node feeds them; the last two have to be those of the model. Without the plug-in maps are sampled by
    gathers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.head = model.head

    def run(self, maps: Sequence[Tensor], rig: Sequence[Tensor], *frame: Any) -> tuple[Tensor, ...]:
        """Return features, anchors, class logits and quality logits; see `specs`.

        Args:
            maps: features, sizes of maps, and where each map begins.
            rig: projections (1, N, 4, 4) and sizes of pictures (1, N, 2).
            frame: what `run_head` takes behind the pictures.
        """
        lidar2img, image_wh = rig
        return run_head(self.head, Pictures(*maps, lidar2img[0], image_wh[0]), *frame)


class FirstFrame(DeployHead):
    """The head of a first frame."""

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
        """Return the outputs of `run`."""
        maps, learned = (feature, spatial_shapes, level_start_index), (instance_feature, anchor)
        return self.run(maps, (lidar2img, image_wh), time_interval, None, learned)


class NextFrame(DeployHead):
    """The head of every other frame, also behind a gap."""

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
        """Return the outputs of `run`, and `track_id` (1, A) if `mask` is above 0, else -1 for all."""
        maps, learned = (feature, spatial_shapes, level_start_index), (instance_feature, anchor)
        last = Remembered(temp_instance_feature, temp_anchor, mask > 0)
        outputs = self.run(maps, (lidar2img, image_wh), time_interval, last, learned)
        return (*outputs, torch.where(mask[:, None] > 0, track_id, torch.full_like(track_id, -1)))


def specs(model: nn.Module, options: Options) -> dict[str, GraphSpec]:
    """Return name of a graph -> its spec, for all four graphs, whichever contract the options name.

    The graph of `portable` is called sparse4d.
    """
    (cameras, height, width), bank = model.input_sizes, model.head.instance_bank
    instances, num_temp = bank.num_anchor, bank.num_temp_instances
    channels = bank.instance_feature.shape[1]
    classes = model.head.layers[-1].cls_layers[-1].out_features
    sizes, _ = map_sizes(model, cameras, height, width)
    cells, levels = int(sizes.prod(-1).sum()), sizes.shape[1]

    def tensor(
        name: str,
        axes: tuple[int, ...],
        meaning: str,
        groups: tuple[ColumnGroup, ...] = (),
        dtype: str = 'float32',
        single: bool = True,
    ) -> TensorSpec:
        groups = widened(groups, options.precision)
        return TensorSpec(name, dtype, axes, meaning, groups=groups, single=single)

    anchor = 'x y z (m) log l w h sin cos (yaw) vx vy vz (m/s)'
    default, longest = f'{bank.default_time_interval:g}', f'{bank.max_time_interval:g}'
    seconds = f'seconds since the last frame, {default} if 0 or more than {longest}'
    is_near = f'1 if the last frame is at most {longest} s away, else 0'
    interval = tensor('time_interval', (1,), seconds)
    temporal = (
        tensor('temp_instance_feature', (1, num_temp, channels), "the last frame's kept instances"),
        tensor('temp_anchor', (1, num_temp, 11), 'their anchors, projected into this frame'),
    )
    outputs = (
        tensor('pred_instance_feature', (1, instances, channels), 'instances', (FEATURES,)),
        tensor('pred_anchor', (1, instances, 11), anchor, ANCHORS),
        tensor('pred_class_score', (1, instances, classes), 'class logits', (LOGITS,)),
        tensor('pred_quality_score', (1, instances, 2), 'logits of centerness and yawness', (LOGITS,)),
    )
    portable = (
        tensor('img', (cameras, 3, height, width), 'normalised images', single=False),
        tensor('lidar2img', (cameras, 4, 4), 'LiDAR frame to pixels times depth'),
        interval,
        *temporal,
        tensor('mask', (1,), is_near),
        tensor('has_temp', (1,), '0 at a first frame, where the last instances may be any finite numbers'),
    )
    rows = tensor('feature', (1, cells, channels), 'features by camera, level, row, column', (ROWS,))
    first = (
        rows,
        tensor('spatial_shapes', (cameras, levels, 2), 'height and width of each map', dtype='int32'),
        tensor('level_start_index', (cameras, levels), 'where each map begins', dtype='int32'),
        tensor('instance_feature', (1, instances, channels), 'head.instance_bank.instance_feature'),
        tensor('anchor', (1, instances, 11), 'head.instance_bank.anchor'),
        interval,
    )
    rig = (
        tensor('image_wh', (1, cameras, 2), 'width and height of the pictures'),
        tensor('lidar2img', (1, cameras, 4, 4), 'LiDAR frame to pixels times depth'),
    )
    memory = (
        tensor('mask', (1,), is_near, dtype='int32'),
        tensor('track_id', (1, instances), 'ids of the kept instances, then -1', dtype='int32'),
    )
    ids = tensor('pred_track_id', (1, instances), 'track_id where mask is 1, else -1', dtype='int32')
    images = tensor('img', (1, cameras, 3, height, width), 'normalised images', single=False)
    return {
        PORTABLE: GraphSpec('sparse4d/portable', portable, outputs),
        BACKBONE: GraphSpec('sparse4d/deploy/backbone', (images,), (rows,)),
        FIRST: GraphSpec('sparse4d/deploy/first', (*first, *rig), outputs),
        NEXT: GraphSpec('sparse4d/deploy/next', (*first, *temporal, *memory, *rig), (*outputs, ids)),
    }


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    """Return the graphs of the contract that the options name."""
    by_name, size, sampled = specs(model, options), model.input_sizes, options.grid_sample == 'operator'
    modules: Sequence[tuple[str, nn.Module]] = [(PORTABLE, PortableFrame(model, size, sampled))]
    if options.contract == DEPLOY:
        modules = [
            (BACKBONE, Backbone(model)),
            (FIRST, FirstFrame(model)),
            (NEXT, NextFrame(model)),
        ]
    contract_graphs = with_examples(model, [(name, module, by_name[name]) for name, module in modules])
    sizes, starts = (values.to(next(model.parameters()).device) for values in map_sizes(model, *size))
    for graph in contract_graphs:
        real = dict(spatial_shapes=sizes, level_start_index=starts)
        graph.example.update({name: values for name, values in real.items() if name in graph.example})
    return contract_graphs
