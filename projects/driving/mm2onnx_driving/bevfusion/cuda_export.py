"""BEVFusion's graphs as NVIDIA's CUDA-BEVFusion loads them: names, shapes and types are API of its C++.

Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, CUDA-BEVFusion/src/bevfusion: its C++ binds tensors by name;
facts, no code.

Glossary: N cameras, H, W pictures of the network, D depth bins, h, w cells of a feature map, C channels, X, Y
cells of the bird's-eye view, Q queries.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.bevfusion.cuda_loop import (
    CELLS,
    DEPTH,
    GRAPHS,
    OTHER_ORDER,
    POOLED,
    SPARSE,
    UNROUNDED,
)
from mm2onnx_driving.bevfusion.fusion import SENSORS
from mm2onnx_driving.bevfusion.graphs import transform_of
from mm2onnx_driving.bevfusion.reference import BEVFusionReference, predictions_of
from mm2onnx_driving.bevfusion.view_transform import Rig
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.exporting.sparse import libspconv
from mmdeploy_ext.exporting.sparse.fold import fold, reorder
from mmdeploy_ext.exporting.sparse.trace import layer_sources
from mmdeploy_ext.families.common.lidar_graphs import backbone_graph, model_spec, traced_encoder
from mmdeploy_ext.families.common.lidar_parts import Hook, OfModel
from mmdeploy_ext.families.contracts import Contract
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

CAMERAS = 6
HEAD = dict(
    score='probability; per query only one class is not zero',
    rot='sine, cosine of the yaw',
    dim='logarithm of w, l, h in m',
    reg='centre in cells of the head, x first',
    height='of the centre, m',
    vel='m/s, x first',
)
"""Outputs of the head, in order; rows are channels, columns queries."""


class CameraBackbone(OfModel):
    """From pictures and depth maps to features, channels last, and weights of depth bins."""

    def forward(self, img: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (N, h, w, C) and the weights (N, D, h, w), which add up to 1 over D.

        `img` (1, N, 3, H, W) is normalised; `depth` (1, N, 1, H, W) has LiDAR depths in m, else 0.
        """
        weights, features = transform_of(self.model).lift(self.model.camera_maps(img[0]), depth[0])
        return features.permute(0, 2, 3, 1), weights


class Fuser(OfModel):
    """From the maps of both sensors to the input map of the head."""

    def forward(self, camera: Tensor, lidar: Tensor) -> Tensor:
        return self.model.joined([camera, lidar])


class BoxValueHead(nn.Module):
    """The head's values before decoding."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, middle: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs that `HEAD` names, (1, channels, Q) each, of the input map (1, C, X, Y)."""
        values = self.head(middle)
        return self.head.scores(values), *(values[name] for name in ('rot', 'dim', 'center', 'height', 'vel'))


def graphs(model: nn.Module, cameras: int) -> list[Graph]:
    """Return the graphs in the order of `loop.GRAPHS`."""
    sparse = backbone_graph(model.encoders['lidar'].encoder)
    sizes = _sizes(model, cameras, sparse.output_shape)
    camera_outputs = dict(
        camera_feature='channels last', camera_depth_weights='probability of each depth bin; they add up to 1'
    )
    view_outputs = dict(feat_out="bird's-eye view (BEV) from the cameras")
    fuser_outputs = dict(middle="bird's-eye view (BEV) from both sensors")
    parts = [
        _graph('camera.backbone', CameraBackbone(model), sizes, ('img', 'depth'), camera_outputs),
        _graph('camera.vtransform', transform_of(model).downsample, sizes, (POOLED,), view_outputs),
        _graph('fuser', Fuser(model), sizes, ('camera', 'lidar'), fuser_outputs),
    ]
    for name in SPARSE:
        file = libspconv.to_onnx(reorder(sparse, name.rpartition('.')[2]))
        parts.append(Graph(name, None, model_spec(file, f'bevfusion/{name}'), {}, file))
    head = BoxValueHead(model.heads['object'])
    return [*parts, _graph('head.bbox', head, sizes, ('middle',), HEAD, 'detections')]


def _sizes(model: nn.Module, cameras: int, lidar: Sequence[int]) -> dict[str, tuple[int, ...]]:
    transform, head = transform_of(model), model.heads['object']
    bins, rows, columns = transform.frustum.shape[:3]
    queries, counts = head.num_proposals, dict(rot=2, dim=3, reg=2, height=1, vel=2)
    x, y = lidar[2:]
    return dict(
        img=(1, cameras, 3, *transform.image_size),
        depth=(1, cameras, 1, *transform.image_size),
        camera_feature=(cameras, rows, columns, transform.C),
        camera_depth_weights=(cameras, bins, rows, columns),
        feat_in=(1, transform.C, *transform.shape),
        feat_out=(1, transform.C, x, y),
        camera=(1, transform.C, x, y),
        lidar=tuple(lidar),
        middle=(1, head.shared_conv.in_channels, x, y),
        score=(1, head.num_classes, queries),
        **{name: (1, count, queries) for name, count in counts.items()},
    )


def _graph(
    name: str,
    module: nn.Module,
    sizes: dict[str, tuple[int, ...]],
    inputs: Sequence[str],
    outputs: dict[str, str],
    compare: str = 'values',
) -> Graph:
    input_specs = tuple(TensorSpec(tensor, 'float32', sizes[tensor]) for tensor in inputs)
    output_specs = tuple(
        TensorSpec(tensor, 'float32', sizes[tensor], meaning, compare=compare)
        for tensor, meaning in outputs.items()
    )
    generator = torch.Generator().manual_seed(0)
    example = {tensor: torch.rand(sizes[tensor], generator=generator) for tensor in inputs}
    return Graph(name, module.eval(), GraphSpec(f'bevfusion/{name}', input_specs, output_specs), example)


HALF = ColumnGroup(rtol=5e-3)
"""Tolerance of float16 weights, as for a sparse backbone alone."""


@torch.no_grad()
def half_encoder(encoder: nn.Module) -> nn.Module:
    """Return a sparse encoder with folded norms and kernels rounded to float16, in float32."""
    traced = traced_encoder(encoder)
    sources, rounded = layer_sources(traced), copy.deepcopy(encoder)
    for node in fold(traced).convolutions():
        conv, norm = map(rounded.get_submodule, (node.module, sources[node.module].norm))
        weight, bias = (
            torch.from_numpy(array.astype(np.float16).astype(np.float32))
            for array in (node.weight, node.bias)
        )
        conv.weight.copy_(weight if weight.shape == conv.weight.shape else weight.permute(1, 2, 3, 4, 0))
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0)
        norm.weight.fill_(1.0)
        norm.bias.copy_(bias)
        norm.eps = 0.0
    return rounded


class CudaReference(BEVFusionReference):
    """The detector with float16 LiDAR kernels, as in the files, and the tensors between all parts."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(copy.deepcopy(model))
        self.exact = model.encoders['lidar'].encoder
        lidar = self.model.encoders['lidar']
        lidar.set_submodule(lidar.encoder_path, half_encoder(self.exact))
        self.output = backbone_graph(self.exact).output

    def of_files(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {'heads.object.forward': predictions_of({name: outputs[name] for name in HEAD})}

    def hooks(self) -> dict[torch.nn.Module, Hook]:
        transform = transform_of(self.model)

        def lifted(_: object, joint: torch.Tensor) -> dict[str, torch.Tensor]:
            weights, features = transform.split(joint)
            return dict(camera_feature=features.permute(0, 2, 3, 1), camera_depth_weights=weights)

        return {
            transform.dtransform: lambda inputs, _: {DEPTH: inputs[0]},
            transform.depthnet: lifted,
            transform.downsample: lambda inputs, output: {POOLED: inputs[0], 'feat_out': output},
            # one map for both sparse files, which differ in the order of the voxels' coordinates
            self.model.encoders['lidar'].encoder: lambda _, bev: {self.output: bev, OTHER_ORDER: bev},
            self.model.heads['object']: lambda inputs, _: dict(middle=inputs[0]),
        }

    def of_rig(self, rig: Rig) -> dict[str, torch.Tensor]:
        """Return `cells`, which the runtime computes; the contract has no graph of the rig."""
        return dict(cells=transform_of(self.model).cells(rig)[0])

    def other_tensors(self, predictions: dict[str, torch.Tensor], cloud: Any) -> dict[str, torch.Tensor]:
        features, coordinates = self.model.encoders['lidar'].voxelize(cloud)
        scores = self.model.heads['object'].scores(predictions)
        values = dict(predictions, score=scores, reg=predictions['center'])
        unrounded = {UNROUNDED: self.exact(features, coordinates, len(cloud))}
        return {**{name: values[name] for name in HEAD}, **unrounded}


class CudaFiles(Contract):
    files, settings = GRAPHS, dict(to_compare=True)

    def check(self, cfg: Any) -> None:
        check_head(cfg, 'cuda-bevfusion')
        prefix = f'{cfg.filename}: --contract cuda-bevfusion: model.encoders'
        if missing := [name for name in SENSORS if not cfg.model.encoders.get(name)]:
            raise ConfigError(f'{prefix} has no {missing[0]}; the program needs both sensors')
        if (kind := cfg.model.encoders.camera.vtransform.type) != 'DepthLSSTransform':
            raise ConfigError(
                f'{prefix}.camera.vtransform.type={kind!r}; the program uses depth maps: expected '
                'DepthLSSTransform'
            )

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        return graphs(model, CAMERAS)

    def reference(self, model: nn.Module) -> CudaReference:
        return CudaReference(model)

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        """Return the specs of tensors between the files, and two more LiDAR maps; cells have to be equal."""
        exact, rounded = (ColumnGroup(rtol=0.0),), (ColumnGroup(rtol=1e-6),)
        return (
            TensorSpec(DEPTH, 'float32', (), 'LiDAR depth per pixel', 'm', rounded),
            TensorSpec(CELLS, 'int64', (), 'cell of each frustum point', groups=exact),
            TensorSpec(POOLED, 'float32', (), 'sums of cells'),
            TensorSpec(OTHER_ORDER, 'float32', (), 'LiDAR map from the file with the other axis order'),
            TensorSpec(UNROUNDED, 'float32', (), "LiDAR map with the checkpoint's weights", groups=(HALF,)),
        )


def check_head(cfg: Any, contract: str) -> None:
    """Raise ConfigError for another head than TransFusion's."""
    if (kind := cfg.model.heads.object.type) != 'TransFusionHead':
        raise ConfigError(
            f'{cfg.filename}: model.heads.object.type={kind!r}: --contract {contract} supports only '
            'TransFusionHead'
        )
