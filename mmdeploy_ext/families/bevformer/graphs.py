"""BEVFormer's graphs: `portable`, of plain operators with the motion of the car as inputs, and `trt-plugin`.

The latter has names and shapes of the known TensorRT deployments and computes the motion itself.

Glossary: N cameras, H, W network input in pixels, Q cells of the bird's-eye view, row by row, C channels, L
decoder layers, R queries of objects, K classes.
"""

import dataclasses

import torch
from torch import Tensor, nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import ColumnGroup, Graph, GraphSpec, TensorSpec
from mmdeploy_ext.families.bevformer.options import TRT_PLUGIN
from mmdeploy_ext.families.parts import bev_plugin_operators
from mmdeploy_ext.families.parts.bev_plugin_operators import rotation_in_graph, turn_view
from mmdeploy_ext.families.parts.camera_graphs import feature_maps
from mmdeploy_ext.families.parts.runtime.bev_motion import CAN_BUS, YAW_DEG, YAW_RAD
from mmdeploy_ext.families.parts.runtime.query_boxes import output_specs
from mmdeploy_ext.families.parts.traced_inputs import with_examples
from mmdeploy_ext.graph.passes.grid_sample import replace_grid_sample
from mmdeploy_ext.models.bevformer import sampling
from mmdeploy_ext.models.bevformer.grid import rotate_view
from mmdeploy_ext.models.bevformer.steps import LastView, decode_objects, encode_view
from mmdeploy_ext.proving.half_bars import widened

FORM = 'bevformer'
"""Name of the graph, and of its file."""
DEPLOYED_NAMES = dict(all_cls_scores='outputs_classes', all_bbox_preds='outputs_coords')
"""Output of the portable graph -> its name in TensorRT deployments."""
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


class BevFormerFrame(nn.Module):
    """One frame: pictures, rig, motion and the last bird's-eye view to the present one and to objects.

    `size` is (H, W).
    """

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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the bird's-eye view and the predictions of all decoder layers.

        Args:
            img: (N, 3, H, W), normalised pictures, padded at the bottom and on the right.
            lidar2img: (N, 4, 4), from the LiDAR's frame, m, to pixels of these pictures times depth.
            can_bus: (18,) of `bev_motion.motion_since`: the record of this frame, but of position (m, along
                the axes of the map) and heading in degrees what they changed by since the frame before.
            bev_shift: (2,) of `bev_motion.bev_shift`: the way of the car since then, x to its right and y
                ahead, in shares of the view's sides; a cell finds itself in the last view at its place plus
                this.
            bev_rotation: (2, 3) of `bev_motion.bev_rotation`, from the centre of a cell (x, y, 1), in cells
                from the middle of the view, to its source x, y in -1..1 of the last view.
            prev_bev: (Q, 1, C), `bev_embed` of the frame before, neither turned nor moved.
            use_prev_bev: (1,) 1; 0 at the first frame of a scene, where `prev_bev` may be any finite numbers.

        Returns:
            `bev_embed` (Q, 1, C), `all_cls_scores` (L, 1, R, K) logits and `all_bbox_preds` (L, 1, R, 10) of
            `steps.decode_objects`, which has their columns.
        """
        head, cells = self.model.pts_bbox_head, prev_bev[:, 0]
        if head.transformer.rotate_prev_bev:
            cells = rotate_view(cells, bev_rotation, head.bev_h, head.bev_w)
        return self.detect(img, lidar2img, can_bus, LastView(cells[None], bev_shift, use_prev_bev))

    def detect(
        self, img: Tensor, lidar2img: Tensor, can_bus: Tensor, last: LastView, by_plugins: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the outputs of `forward`, of `last` as the present frame uses it.

        `img`, `lidar2img` and `can_bus` are those of `forward`, without an axis of samples. With `by_plugins`
        the attentions are operators of the plug-ins, else standard ones.
        """
        head = self.model.pts_bbox_head
        operators = bev_plugin_operators if by_plugins else sampling
        maps = feature_maps(self.model, img)
        view = encode_view(head, maps, can_bus, lidar2img, self.size, last, operators)
        logits, boxes = decode_objects(head, view, operators)
        return view.transpose(0, 1), logits, boxes


class DeployedFrame(BevFormerFrame):
    """One frame as TensorRT deployments feed it: shift and rotation are computed from the motion.

    With `by_plugins` the rotation and the attentions are operators of the plug-ins, else standard ones.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int], by_plugins: bool) -> None:
        super().__init__(model, size)
        self.by_plugins = by_plugins

    def forward(
        self, image: Tensor, prev_bev: Tensor, use_prev_bev: Tensor, can_bus: Tensor, lidar2img: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `BevFormerFrame.forward` returns, as `bev_embed`, `outputs_classes`, `outputs_coords`.

        `image` (1, N, 3, H, W) and `lidar2img` (1, N, 4, 4) have an axis of one sample; the other arguments
        are those of `BevFormerFrame.forward`, and `can_bus` is in the order that `record` takes.
        """
        head, cells = self.model.pts_bbox_head, prev_bev[:, 0]
        if head.transformer.rotate_prev_bev:
            center, size = head.transformer.rotate_center, (head.bev_h, head.bev_w)
            if self.by_plugins:
                cells = turn_view(cells, can_bus[YAW_DEG], center, *size)
            else:
                rotation = rotation_in_graph(can_bus[YAW_DEG], cells.new_tensor(list(center)), *size)
                cells = rotate_view(cells, rotation, *size)
        last = LastView(cells[None], self.shift(can_bus), use_prev_bev)
        return self.detect(image[0], lidar2img[0], self.record(can_bus), last, self.by_plugins)

    def record(self, can_bus: Tensor) -> Tensor:
        """Return the record (18,) of the motion as the model has it, of the fed one; here the same."""
        return can_bus

    def shift(self, can_bus: Tensor) -> Tensor:
        """Return `runtime.bev_motion.bev_shift` (2,) of the motion (18,), zeros if the model uses none."""
        head = self.model.pts_bbox_head
        if not head.transformer.use_shift:
            return 0 * can_bus[:2]
        x, y, yaw = can_bus[0], can_bus[1], can_bus[YAW_RAD]
        sine, cosine = yaw.sin(), yaw.cos()
        low, high = can_bus.new_tensor(head.pc_range[:2]), can_bus.new_tensor(head.pc_range[3:5])
        return torch.stack([x * sine - y * cosine, x * cosine + y * sine]) / (high - low)


def spec(model: nn.Module, options: Options) -> GraphSpec:
    """Return the contract of the portable graph, whatever contract the options name.

    Calibration, motion and `use_prev_bev` (`single`) are computed in float32 in a graph of float16, too.
    """
    head, (cameras, height, width) = model.pts_bbox_head, model.input_sizes
    cells, channels = head.bev_h * head.bev_w, head.transformer.embed_dims
    layers, queries = len(head.transformer.decoder.layers), head.query_embedding.num_embeddings

    def tensor(
        name: str,
        axes: tuple[int, ...],
        meaning: str,
        groups: tuple[ColumnGroup, ...] = (),
        single: bool = False,
    ) -> TensorSpec:
        groups = widened(groups, options.precision)
        return TensorSpec(name, 'float32', axes, meaning, groups=groups, single=single)

    view = (cells, 1, channels)
    inputs = (
        tensor('img', (cameras, 3, height, width), 'normalised images, padded bottom and right'),
        tensor('lidar2img', (cameras, 4, 4), 'LiDAR frame to pixels times depth', single=True),
        tensor(
            'can_bus',
            (CAN_BUS,),
            'record of the motion, position and heading since the last frame',
            single=True,
        ),
        tensor(
            'bev_shift',
            (2,),
            'where a cell finds itself in the last view: x, y from its place, in shares of the sides',
            single=True,
        ),
        tensor('bev_rotation', (2, 3), 'centres of cells to their sources in the last view', single=True),
        tensor('prev_bev', view, "the last frame's bev_embed; any finite numbers at the first frame"),
        tensor('use_prev_bev', (1,), '0 at the first frame of a scene, 1 otherwise', single=True),
    )
    outputs = (
        tensor('bev_embed', view, "bird's-eye view, row by row from the least y, x", (BEV,)),
        *output_specs(
            (layers, 1, queries),
            int(head.cls_branches[-1][-1].out_features),
            widened((LOGITS,), options.precision),
            widened(BOXES, options.precision),
        ),
    )
    return GraphSpec('bevformer/portable', inputs, outputs, (('bev_embed', 'prev_bev'),))


def deployed_spec(portable: GraphSpec, contract: str = 'trt-plugin') -> GraphSpec:
    """Return a contract with the tensors of the portable one under the names of TensorRT deployments.

    Shift and rotation are no inputs of it, and images and rig have an axis of one sample in front; `contract`
    is what follows 'bevformer/' in its name.

    Source of names, shapes and order: DerryHub/BEVFormer_tensorrt 303d314, configs/bevformer; the same are
    looked up by autoware_tensorrt_bevformer.
    """

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


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    """Return the one graph of the contract that the options name, `trt-plugin` or `portable`."""
    _, height, width = model.input_sizes
    if options.contract == TRT_PLUGIN:
        module = DeployedFrame(model, (height, width), by_plugins=True)
        (graph,) = with_examples(model, [(FORM, module, deployed_spec(spec(model, options)))])
        stages = [dataclasses.replace(stage, operators='plugin') for stage in graph.stages]
        return [dataclasses.replace(graph, make=lambda: stages)]
    module = BevFormerFrame(model, (height, width))
    return [with_sampling(*with_examples(model, [(FORM, module, spec(model, options))]), options)]


def with_sampling(graph: Graph, options: Options) -> Graph:
    """Return a graph whose samples are taken as the options say, by GridSample or by gathers."""
    if options.grid_sample == 'operator':
        return graph
    stages = [dataclasses.replace(stage, passes=(replace_grid_sample,)) for stage in graph.stages]
    return dataclasses.replace(graph, make=lambda: stages)
