"""BEVFormer's graph with names and shapes of TensorRT deployments, with shift and rotation inside.

Source of names, shapes and order: DerryHub/BEVFormer_tensorrt 303d314, configs/bevformer.

Glossary: N cameras, H, W network input in pixels, Q cells of the bird's-eye view, row by row, C channels, L
decoder layers, R queries of objects, K classes.
"""

import dataclasses
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from mm2onnx_driving.bevformer import plugin_operators
from mm2onnx_driving.bevformer.family import spec
from mm2onnx_driving.bevformer.runtime import DEPLOYED_NAMES, FORM
from mm2onnx_driving.common.bev import BevFrame
from mm2onnx_driving.common.camera import camera_graphs
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mm2onnx_driving.layers import bev_sampling
from mm2onnx_driving.layers.bev_steps import LastView, rotate_view, rotation_in_graph
from mmdeploy_ext.families.contracts import Contract
from mmdeploy_ext.runtime.bev_motion import YAW_DEG, YAW_RAD
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec


class DeployedFrame(BevFrame):
    """One frame as TensorRT deployments feed it, in standard operators, from the motion."""

    operators: ModuleType = bev_sampling

    def forward(
        self, image: Tensor, prev_bev: Tensor, use_prev_bev: Tensor, can_bus: Tensor, lidar2img: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `BevFrame.forward` as `bev_embed`, `outputs_classes`, `outputs_coords`.

        `image` (1, N, 3, H, W) and `lidar2img` (1, N, 4, 4) have a batch axis; `can_bus` is in `record`'s
        order.
        """
        head, cells = self.model.pts_bbox_head, prev_bev[:, 0]
        if head.transformer.rotate_prev_bev:
            cells = self.turn(cells, can_bus[YAW_DEG], head.transformer.rotate_center, head.bev_h, head.bev_w)
        last = LastView(cells[None], self.shift(can_bus), use_prev_bev)
        return self.detect(image[0], lidar2img[0], self.record(can_bus), last, self.operators)

    def turn(
        self, cells: Tensor, degrees: Tensor, center: Sequence[float], height: int, width: int
    ) -> Tensor:
        rotation = rotation_in_graph(degrees, cells.new_tensor(list(center)), height, width)
        return rotate_view(cells, rotation, height, width)

    def record(self, can_bus: Tensor) -> Tensor:
        return can_bus

    def shift(self, can_bus: Tensor) -> Tensor:
        """Return `runtime.bev_motion.bev_shift` (2,) of the motion (18,), or zeros."""
        head = self.model.pts_bbox_head
        if not head.transformer.use_shift:
            return 0 * can_bus[:2]
        x, y, yaw = can_bus[0], can_bus[1], can_bus[YAW_RAD]
        sine, cosine = yaw.sin(), yaw.cos()
        low, high = can_bus.new_tensor(head.pc_range[:2]), can_bus.new_tensor(head.pc_range[3:5])
        return torch.stack([x * sine - y * cosine, x * cosine + y * sine]) / (high - low)


def deployed_spec(portable: GraphSpec, contract: str) -> GraphSpec:
    """Return the portable contract under the names of TensorRT deployments."""

    def renamed(name: str, new: str = '', batch: bool = False) -> TensorSpec:
        tensor = portable.tensor(name)
        axes = (1, *tensor.axes) if batch else tensor.axes
        return dataclasses.replace(tensor, name=new or name, axes=axes)

    inputs = (
        renamed('img', 'image', batch=True),
        renamed('prev_bev'),
        renamed('use_prev_bev'),
        renamed('can_bus'),
        renamed('lidar2img', batch=True),
    )
    outputs = [renamed(name, DEPLOYED_NAMES.get(name, name)) for name in portable.output_names]
    return GraphSpec(f'bevformer/{contract}', inputs, tuple(outputs), portable.state)


class PluginFrame(DeployedFrame):
    """A frame with plug-ins for rotation and attentions."""

    operators, turn = plugin_operators, staticmethod(plugin_operators.turn_view)


class PluginFiles(Contract):
    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        module = PluginFrame(model, tuple(model.input_sizes[1:]))
        contract = deployed_spec(spec(model), 'trt-plugin')
        (graph,) = camera_graphs(model, options, [(FORM, module, contract)])
        stages = [dataclasses.replace(stage, operators='plugin') for stage in graph.stages]
        return [dataclasses.replace(graph, make=lambda: stages)]

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        return predictions(model, options)


def predictions(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
    return tuple(spec(model).tensor(name) for name in PREDICTIONS)
