"""Frames to a bird's-eye view and predictions, of plain operators, with the motion of the car as inputs.

Glossary: N cameras, H, W network input in pixels, Q cells of the bird's-eye view, row by row, C channels, L
decoder layers, R queries of objects, K classes.
"""

import dataclasses
from collections.abc import Sequence
from types import ModuleType

from torch import Tensor, nn

from mm2onnx_driving.common.camera_graphs import feature_maps
from mm2onnx_driving.common.runtime.query_boxes import output_specs
from mm2onnx_driving.layers.bev_view import sampling
from mm2onnx_driving.layers.bev_view.grid import rotate_view
from mm2onnx_driving.layers.bev_view.steps import LastView, decode_objects, encode_view
from mmdeploy_ext.graphs.passes.grid_sample import replace_grid_sample
from mmdeploy_ext.runtime.bev_motion import CAN_BUS
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

BEV = ColumnGroup(rtol=0.0, atol=1e-4)
LOGITS = ColumnGroup('logits', unit='logit', rtol=0.0, atol=5e-4)
BOXES = (
    ColumnGroup('xyz', (0, 1, 4), 'm', 0.0, 2e-3),
    ColumnGroup('log size', (2, 3, 5), '', 0.0, 5e-4),
    ColumnGroup('sin cos yaw', (6, 7), '', 0.0, 5e-4),
    ColumnGroup('velocity', (8, 9), 'm/s', 0.0, 5e-4),
)
"""Tolerances of float32. Source: "Suggested tolerances" of the reference data of BEVFormer; the view has
twice the bar of its slices, as all of its numbers are compared."""


class BevFrame(nn.Module):
    """Pictures, rig, motion and last view to the present view and predictions; `size` is (H, W)."""

    shifts_present = False

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(
        self,
        img: Tensor,
        lidar2img: Tensor,
        can_bus: Tensor,
        bev_shift: Tensor,
        bev_rotation: Tensor,
        prev_bev: Tensor,
        use_prev_bev: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the bird's-eye view (Q, 1, C) and `predictions`.

        Args:
            img: (N, 3, H, W), normalised pictures, padded at the bottom and on the right.
            lidar2img: (N, 4, 4), LiDAR frame, m, to pixels times depth.
            can_bus: (18,) of `bev_motion.motion_since`: this frame's record, with position (m, axes of the
                map) and heading (degrees) relative to the frame before.
            bev_shift: (2,) of `bev_motion.bev_shift`: motion of the car, x right and y ahead, relative to
                the sides of the view.
            bev_rotation: (2, 3) of `bev_motion.bev_rotation`: cell centre (x, y, 1), in cells from the
                middle, to its source x, y in -1..1 of the last view.
            prev_bev: (Q, 1, C), `bev_embed` of the frame before, neither turned nor moved.
            use_prev_bev: (1,) 1; 0 at the first frame of a scene, where `prev_bev` may hold any finite
                numbers.
        """
        head, cells = self.model.pts_bbox_head, prev_bev[:, 0]
        if head.transformer.rotate_prev_bev:
            cells = rotate_view(cells, bev_rotation, head.bev_h, head.bev_w)
        last = LastView(cells[None], bev_shift, use_prev_bev, self.shifts_present)
        return self.detect(img, lidar2img, can_bus, last)

    def detect(
        self,
        img: Tensor,
        lidar2img: Tensor,
        can_bus: Tensor,
        last: LastView,
        operators: ModuleType = sampling,
    ) -> tuple[Tensor, ...]:
        head = self.model.pts_bbox_head
        maps = feature_maps(self.model, img)
        view = encode_view(head, maps, can_bus, lidar2img, self.size, last, operators)
        return view.transpose(0, 1), *self.predictions(view, operators)

    def predictions(self, view: Tensor, operators: ModuleType) -> tuple[Tensor, ...]:
        """Return logits (L, 1, R, K), boxes (L, 1, R, 10) of `steps.decode_objects`, and further outputs."""
        found = decode_objects(self.model.pts_bbox_head, view, operators)
        return found.logits, found.boxes


def frame_spec(model: nn.Module, name: str, further: Sequence[TensorSpec] = ()) -> GraphSpec:
    """Return the contract of a `BevFrame`; `further` are outputs after boxes."""
    head, (cameras, height, width) = model.pts_bbox_head, model.input_sizes
    view = (head.bev_h * head.bev_w, 1, head.transformer.embed_dims)
    layers, queries = len(head.transformer.decoder.layers), head.query_embedding.num_embeddings
    classes = int(head.cls_branches[-1][-1].out_features)
    images = 'normalised images, padded bottom and right'
    before = 'bev_embed of the last frame; any finite values at the first frame'
    record = 'can_bus record; position and heading relative to the last frame'
    shift = 'shift of each cell in the last view: x, y relative to the sides'
    rotation = 'cell centres to their positions in the last view'
    exists = '0 at the first frame of a scene, 1 otherwise'
    cells = "bird's-eye view (BEV), row by row from the smallest y, x"
    inputs = (
        TensorSpec('img', 'float32', (cameras, 3, height, width), images),
        TensorSpec('lidar2img', 'float32', (cameras, 4, 4), 'LiDAR frame to pixels times depth', single=True),
        TensorSpec('can_bus', 'float32', (CAN_BUS,), record, single=True),
        TensorSpec('bev_shift', 'float32', (2,), shift, single=True),
        TensorSpec('bev_rotation', 'float32', (2, 3), rotation, single=True),
        TensorSpec('prev_bev', 'float32', view, before),
        TensorSpec('use_prev_bev', 'float32', (1,), exists, single=True),
    )
    predictions = output_specs((layers, 1, queries), classes, (LOGITS,), BOXES)
    outputs = (TensorSpec('bev_embed', 'float32', view, cells, groups=(BEV,)), *predictions, *further)
    return GraphSpec(name, inputs, outputs, (('bev_embed', 'prev_bev'),))


def with_sampling(graph: Graph, options: Options) -> Graph:
    if options.grid_sample == 'operator':
        return graph
    stages = [dataclasses.replace(stage, passes=(replace_grid_sample,)) for stage in graph.stages]
    return dataclasses.replace(graph, make=lambda: stages)
