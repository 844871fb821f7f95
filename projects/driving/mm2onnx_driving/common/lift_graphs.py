"""Pictures lifted into a bird's-eye view: the parts that the graphs of several systems share.

Glossary: N cameras, H, W network input in pixels, D depth bins, h, w feature map, C channels, Y, X rows and
columns of the view.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mm2onnx_driving.common.camera_graphs import camera_graphs
from mm2onnx_driving.common.runtime.lift_splat import LiftFacts
from mm2onnx_driving.layers.lift_splat.detector import only_map
from mm2onnx_driving.layers.lift_splat.view_transformer import camera_vectors, cells_of, frustum_points
from mmdeploy_ext.families.common.lidar_parts import OfModel
from mmdeploy_ext.graphs.passes.resize_conv import convolve_before_resize
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec
from mmdeploy_ext.upstream.operators.cells import sum_by_tables


def knows_camera(model: nn.Module) -> bool:
    return not isinstance(model.img_view_transformer.depth_net, nn.Conv2d)


class LiftNetwork(OfModel):
    """The parts of a detector that all contracts have."""

    def lift(self, images: Tensor, vectors: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return depth (N, D, h, w) and features (N, C, h, w) of pictures, and camera vectors (N, 27)."""
        model, transformer = self.model, self.model.img_view_transformer
        maps = only_map(model.img_neck(model.img_backbone(images)))
        joint = transformer.depth_net(maps, *([] if vectors is None else [vectors]))
        last = transformer.D + transformer.out_channels
        return joint[:, : transformer.D].softmax(1), joint[:, transformer.D : last]

    def encoded(self, view: Tensor) -> Tensor:
        return only_map(self.model.img_bev_encoder_neck(self.model.img_bev_encoder_backbone(view)))


class LiftFrame(LiftNetwork):
    """Pictures and poses to the view, by gathers alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        matrix = torch.from_numpy(model.rule.crop_matrix())
        self.post_rot, self.post_tran = (
            torch.diag(torch.tensor([*matrix.diag()[:2], 1.0])),
            matrix[:, 2].clone(),
        )
        self.post_tran[2] = 0.0

    def view_of(self, img: Tensor, sensor2keyego: Tensor, intrinsics: Tensor) -> Tensor:
        """Return the view (1, C, Y, X).

        Args:
            img: (N, 3, H, W), normalised.
            sensor2keyego: (N, 4, 4), camera to key ego.
            intrinsics: (N, 3, 3), camera to picture as it was taken.
        """
        count = len(img)
        matrices = intrinsics, self.post_rot.expand(count, -1, -1), self.post_tran.expand(count, -1)
        vectors = camera_vectors(sensor2keyego, *matrices) if knows_camera(self.model) else None
        return self.pool(*self.lift(img, vectors), sensor2keyego, *matrices)

    def pool(self, depth: Tensor, features: Tensor, *matrices: Tensor) -> Tensor:
        """Return the view (1, C, Y, X), by gathers alone."""
        transformer = self.model.img_view_transformer
        points = frustum_points(*matrices, transformer.frustum)
        columns, rows, levels = (int(size) for size in transformer.grid_size)
        low, step = transformer.grid_lower_bound, transformer.grid_interval
        cells = cells_of(points, low, step, (columns, rows, levels))
        first, second, third, slots = self.model.cell_tables(cells.flatten())
        per_camera, pixels = depth[0].numel(), depth[0, 0].numel()
        numbers = (first - 1).clamp(min=0)
        factors = functional.pad(depth.flatten(), (1, 0))[first]
        rows_of = numbers // per_camera * pixels + numbers % pixels
        values = features.permute(0, 2, 3, 1).flatten(0, 2)[rows_of]
        sums = (factors[:, None] @ values)[:, 0]
        return sum_by_tables(sums, (second, third), slots).T.unflatten(1, (rows, columns))[None]


def view_axes(model: nn.Module) -> tuple[int, int, int]:
    columns, rows, _ = (int(size) for size in model.img_view_transformer.grid_size)
    return int(model.img_view_transformer.out_channels), rows, columns


def frame_inputs(model: nn.Module) -> list[TensorSpec]:
    """Return the contracts of a frame; geometry is float32 and float64 in a graph of float16, too."""
    cameras, height, width = model.input_sizes
    return [
        TensorSpec('img', 'float32', (cameras, 3, height, width), 'normalised images, B, G, R'),
        TensorSpec('sensor2keyego', 'float32', (cameras, 4, 4), 'camera to key ego, m', single=True),
        TensorSpec(
            'intrinsics', 'float32', (cameras, 3, 3), 'camera to pixels of the original image', single=True
        ),
    ]


def lift_graphs(
    model: nn.Module, options: Options, name: str, module: nn.Module, spec: GraphSpec
) -> list[Graph]:
    """Return the graph of a family's own contract."""
    (graph,) = camera_graphs(model, options, [(name, module, spec)])
    if options.precision != 'fp32':
        return [graph]
    stages = [dataclasses.replace(stage, passes=(convolve_before_resize,)) for stage in graph.stages]
    return [dataclasses.replace(graph, make=lambda: stages)]


def lift_facts(model: nn.Module) -> dict[str, Any]:
    """Return the fields of `LiftFacts`."""
    transformer, frustum = model.img_view_transformer, model.img_view_transformer.frustum
    return dict(
        grid_low=tuple(transformer.grid_lower_bound.tolist()),
        grid_step=tuple(transformer.grid_interval.tolist()),
        grid_count=tuple(int(size) for size in transformer.grid_size),
        depths=tuple(frustum[:, 0, 0, 2].tolist()),
        columns=tuple(frustum[0, 0, :, 0].tolist()),
        rows=tuple(frustum[0, :, 0, 1].tolist()),
    )


def view_facts(model: nn.Module) -> LiftFacts:
    return LiftFacts(**lift_facts(model))
