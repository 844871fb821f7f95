"""BEVFusion of LiDAR alone as Autoware's bevfusion loads it: one graph from voxels to values of boxes.

Source: autoware_universe 5e12a711, autoware_bevfusion (names, shapes, formulas; facts, no code).

Glossary: B batch, V voxels, C channels, X, Y cells of the bird's-eye view, Q queries.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from mm2onnx_driving.autoware.contract import AutowareContract, companion_texts, published
from mm2onnx_driving.autoware.nodes import BEVFUSION_LIDAR
from mm2onnx_driving.bevfusion.autoware import BEV, DOMAIN, LIDAR, VERSION, ImplicitGemm
from mm2onnx_driving.bevfusion.cuda_export import check_head
from mm2onnx_driving.bevfusion.reference import BEVFusionReference, predictions_of
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.exporting.sparse.libspconv import NodeWriter
from mmdeploy_ext.families.common.lidar_graphs import backbone_graph
from mmdeploy_ext.families.common.lidar_parts import OfModel, rule_of_layer
from mmdeploy_ext.runtime.sparse.ir import SparseGraph
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, Stage, TensorSpec

MAX_SITES = 256_000
"""Most sites of a level in the plug-in's room."""
CAMERA_PARAMETERS = dict(
    d_bound=[1.0, 60.0, 0.5],
    z_bound=[-10.0, 10.0, 20.0],
    num_cameras=6,
    raw_image_height=900,
    raw_image_width=1600,
    img_aug_scale_x=0.48,
    img_aug_scale_y=0.48,
    roi_height=256,
    roi_width=704,
    features_height=32,
    features_width=88,
    num_depth_features=118,
    image_feature_channel=80,
)
"""Keys that the node reads, unused, for models without cameras."""
MEANINGS = dict(
    voxels='x, y, z in m, intensity 0 to 255 where there are five, time lag in s; zeros after the points',
    num_points_per_voxel='how many of the rows are points',
    coors='cell of the voxel: z, y, x',
    bbox_pred='x, y in cells, z of the centre in m, log of l, w, h in m, sine, cosine of the yaw, velocity',
    score='probability',
    label_pred='class',
)
"""Input or output of the file -> its meaning."""


class NodeDenseHead(OfModel):
    """From the LiDAR's map to the node's values of boxes."""

    def forward(self, bev: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `bbox_pred` (10, Q), `score` (Q,) and `label_pred` (Q,) of the LiDAR's map (1, C, X, Y)."""
        return boxes_of_node(self.model.heads['object'], self.model.joined([bev]))


def boxes_of_node(head: nn.Module, joined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `bbox_pred` (10, Q), `score` (Q,) and `label_pred` (Q,) of a head's input map (1, C, X, Y)."""
    values = head(joined)
    return node_boxes(values)[0], head.scores(values).amax(1)[0], values['query_labels'][0]


def node_boxes(values: Mapping[str, Tensor]) -> Tensor:
    """Return `bbox_pred` (B, 10, Q) in the node's convention.

    `values`: `center`, `height`, `dim`, `rot` and `vel`, (B, channels, Q), see `TransFusionHead.forward`.
    """
    sizes, rot = values['dim'], values['rot']
    swapped = [sizes[:, 1:2], sizes[:, :1], sizes[:, 2:], -rot[:, 1:], -rot[:, :1]]
    return torch.cat([values['center'], values['height'], *swapped, values['vel']], 1)


def graphs(model: nn.Module) -> list[Graph]:
    """Return one graph, from voxels to the node's values of boxes."""
    sparse = backbone_graph(model.encoders['lidar'].encoder)
    voxels, queries = model.encoders['lidar'].voxel_layer, model.heads['object'].num_proposals
    point_values = int(model.encoders['lidar'].in_channels)
    inputs = (
        _spec('voxels', 'float32', ('V', int(voxels.max_num_points), point_values)),
        _spec('num_points_per_voxel', 'int32', ('V',)),
        _spec('coors', 'int32', ('V', 3)),
    )
    types_and_axes = dict(
        bbox_pred=('float32', (10, queries)), score=('float32', (queries,)), label_pred=('int64', (queries,))
    )
    outputs = tuple(_spec(name, *facts, compare='detections') for name, facts in types_and_axes.items())
    spec = GraphSpec(f'bevfusion/{LIDAR}', inputs, outputs)
    stage = Stage(
        'dense',
        NodeDenseHead(model).eval(),
        (BEV,),
        tuple(spec.output_names),
        passes=(functools.partial(with_encoder, sparse=sparse, spec=spec),),
    )
    example = {BEV: torch.rand(sparse.output_shape, generator=torch.Generator().manual_seed(0))}
    return [Graph(LIDAR, None, spec, example, make=lambda: (stage,))]


def _spec(name: str, dtype: str, axes: tuple[int | str, ...], compare: str = 'values') -> TensorSpec:
    return TensorSpec(name, dtype, axes, MEANINGS[name], compare=compare)


def with_encoder(
    model: onnx.ModelProto, sparse: SparseGraph, spec: GraphSpec
) -> tuple[onnx.ModelProto, bool]:
    """Put voxels and the folded sparse encoder before the input `bev`; return the graph and True.

    `spec` is the result's, with inputs `voxels`, `num_points_per_voxel` and `coors`.
    """
    writer = NodeWriter()
    for tensor in spec.inputs:
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        writer.input(tensor.name, dtype, *tensor.axes)
    axis = writer.integers(1)  # of the points of a voxel, then of the features
    total = writer.op('ReduceSum', ['voxels', axis], 'mean/total', keepdims=0)
    count = writer.op('Cast', ['num_points_per_voxel'], 'mean/count', to=TensorProto.FLOAT)
    column = writer.op('Unsqueeze', [count, axis], 'mean/column')
    features = writer.op('Div', [total, column], 'mean/features')
    encoded = ImplicitGemm(sparse, writer).write(encoder_sites(writer, sparse.order), features)
    last = next(node for node in writer.nodes if node.output[0] == encoded)
    last.output[0] = BEV
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    graph.value_info.extend(graph.input)
    nodes = [*writer.nodes, *graph.node]
    for field, values in ((graph.node, nodes), (graph.input, writer.inputs)):
        del field[:]
        field.extend(values)
    graph.initializer.extend(writer.initializers.values())
    result.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    return result, True


def encoder_sites(writer: NodeWriter, order: str) -> str:
    """Write nodes that make the encoder's sites of `coors`; return the name of their output.

    `coors` (V, 3) are z, y, x; sites (V, 4) the sample 0 and the cell in `order`, 'xyz' or 'zyx'.
    """
    columns = [0, 2, 1, 0] if order == 'xyz' else [0, 0, 1, 2]
    picked = writer.op(
        'Gather', ['coors', writer.constant('sites/columns', np.array(columns))], 'sites/picked', axis=1
    )
    mask = writer.constant('sites/sample', np.array([0, 1, 1, 1], np.int32))
    return writer.op('Mul', [picked, mask], 'sites/all')


class NodeReference(BEVFusionReference):
    """The unpatched detector; its test path decodes the file's boxes."""

    def of_files(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        x, y, z, length, width, height, sine, cosine, *velocity = outputs['bbox_pred']
        rows = dict(reg=[x, y], height=[z], dim=[width, length, height], rot=[-cosine, -sine], vel=velocity)
        values = {name: np.stack(columns)[None] for name, columns in rows.items()}
        classes = self.model.heads['object'].num_classes
        score = np.eye(classes, dtype=np.float32)[outputs['label_pred']].T * outputs['score']
        return {'heads.object.forward': predictions_of(dict(values, score=score[None]))}


class BEVFusionFiles(AutowareContract):
    node = BEVFUSION_LIDAR

    def check(self, cfg: Any) -> None:
        check_head(cfg, 'autoware')
        prefix = f'{cfg.filename}: --contract autoware: model.'
        if cfg.model.encoders.get('camera'):
            raise ConfigError(f'{prefix}encoders.camera: this contract is for LiDAR only; remove the cameras')
        voxels = cfg.model.encoders.lidar.voxelize
        point_values = int(cfg.model.encoders.lidar.backbone.in_channels)
        if point_values not in (4, 5):
            raise ConfigError(
                f'{prefix}encoders.lidar.backbone.in_channels={point_values}, expected 4 (x, y, z, time lag) '
                f'or 5 (with intensity)'
            )
        rule = rule_of_layer(voxels, point_values, 'xyz')
        if rule.mode == 'dynamic':
            raise ConfigError(
                f'{prefix}encoders.lidar.voxelize: max_num_points={rule.max_points}, '
                f'max_voxels={rule.max_voxels}: the node limits both; expected numbers above 0'
            )
        if rule.max_voxels > MAX_SITES:
            raise ConfigError(
                f'{prefix}encoders.lidar.voxelize.max_voxels={rule.max_voxels}: the plug-in supports at '
                f'most {MAX_SITES}'
            )

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        return graphs(model)

    def reference(self, model: nn.Module) -> NodeReference:
        return NodeReference(model)

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        return (TensorSpec(BEV, 'float32', (), "LiDAR's map of the sparse encoder"),)

    def companions(self, model: nn.Module) -> dict[str, str]:
        voxels, coder = model.encoders['lidar'].voxel_layer, model.heads['object'].bbox_coder
        point_range, voxel_size = (
            [float(value) for value in values] for values in (voxels.point_cloud_range, voxels.voxel_size)
        )
        _, max_voxels = voxels.max_voxels  # of training and of tests
        stride = int(coder.out_size_factor)
        bounds = {
            f'{"xy"[axis]}_bound': [point_range[axis], point_range[axis + 3], voxel_size[axis] * stride]
            for axis in (0, 1)
        }
        parameters = dict(
            class_names=published(BEVFUSION_LIDAR.classes, model.CLASSES),
            voxels_num=[1, int(max_voxels) // 2, int(max_voxels)],
            point_cloud_range=point_range,
            voxel_size=voxel_size,
            num_proposals=int(model.heads['object'].num_proposals),
            out_size_factor=stride,
            max_points_per_voxel=int(voxels.max_num_points),
            use_intensity=int(model.encoders['lidar'].in_channels) == 5,
            **bounds,
            **CAMERA_PARAMETERS,
        )
        return companion_texts(BEVFUSION_LIDAR, parameters)
