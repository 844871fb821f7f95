"""BEVFusion's graphs as NVIDIA's CUDA-BEVFusion loads them: names, shapes and types are API of its C++.

Pooling, voxels and boxes are outside, see `mmdeploy_ext/consumers/cuda_bevfusion/cuda.py`.

Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, CUDA-BEVFusion/src/bevfusion: its C++ binds tensors by name;
facts, no code.

Glossary: N cameras, H, W pictures of the network, D depth bins, h, w cells of a feature map, C channels, X, Y
cells of the bird's-eye view, Q queries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdeploy_ext.consumers.cuda_bevfusion.cuda import CELLS, DEPTH, OTHER_ORDER, POOLED, SPARSE, UNROUNDED
from mmdeploy_ext.contract.spec import ColumnGroup, Graph, GraphSpec, TensorSpec
from mmdeploy_ext.families.bevfusion.graphs import transform_of
from mmdeploy_ext.families.parts.lidar_parts import OfModel
from mmdeploy_ext.families.parts.sparse_graph import backbone_graph, model_spec
from mmdeploy_ext.sparse import libspconv
from mmdeploy_ext.sparse.order import reorder

HEAD = dict(
    score='probability; of a query one class alone is not zero',
    rot='sine, cosine of the yaw',
    dim='logarithm of w, l, h in m',
    reg='centre in cells of the head, x first',
    height='of the centre, m',
    vel='m/s, x first',
)
"""Outputs of the head, in order; rows are channels, columns queries."""


class CameraBackbone(OfModel):
    """From pictures and depth maps to features, channels last, and the weights of the depth bins."""

    def forward(self, img: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (N, h, w, C) and the weights (N, D, h, w), which add up to 1 over D.

        Args:
            img: (1, N, 3, H, W) pictures, normalised by the rule in the metadata.
            depth: (1, N, 1, H, W) depths of the LiDAR's points in m, 0 where a pixel has none.
        """
        weights, features = transform_of(self.model).lift(self.model.camera_maps(img[0]), depth[0])
        return features.permute(0, 2, 3, 1), weights


class Fuser(OfModel):
    """From the maps of both sensors to the input map of the head."""

    def forward(self, camera: Tensor, lidar: Tensor) -> Tensor:
        """Return the map (1, C, X, Y) of one of each sensor; their numbers of channels differ from C."""
        return self.model.joined([camera, lidar])


class BoxValueHead(nn.Module):
    """The head's values before they are decoded."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, middle: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs that `HEAD` names, (1, channels, Q) each, of the input map (1, C, X, Y).

        The yaw is counted from -y, clockwise, and the centre from the corner of the map: they are not in the
        columns of `Detections3D` before `cuda_bevfusion.cuda.detections` has decoded them. `score` is that of
        `TransFusionHead.scores`.
        """
        values = self.head(middle)
        return self.head.scores(values), *(values[name] for name in ('rot', 'dim', 'center', 'height', 'vel'))


def graphs(model: nn.Module, cameras: int) -> list[Graph]:
    """Return the graphs of a detector for `cameras` cameras, in the order of `cuda_bevfusion.cuda.GRAPHS`.

    It is not the order in which they run: `fuser` comes before the LiDAR's files. Those of `SPARSE` are
    finished files, one for each order of the coordinates. Results decoded from the outputs of the last graph
    are matched, and the outputs of the other dense graphs are compared value by value.
    """
    sparse = backbone_graph(model.encoders['lidar'].encoder)
    sizes = _sizes(model, cameras, sparse.output_shape)
    camera_outputs = dict(
        camera_feature='channels last', camera_depth_weights='of the bins of depth; they add up to 1'
    )
    view_outputs = dict(feat_out='what the cameras see from above')
    fuser_outputs = dict(middle="bird's-eye view of both sensors")
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
    """Return name -> shape of every tensor of the files in standard ONNX."""
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
"""Tolerance of float16 weights against the model's float32 ones; that of the sparse backbone alone, too."""


def runner_output_specs() -> tuple[TensorSpec, ...]:
    """Return the tensors that a runner computes between the files, and two more maps of the LiDAR.

    They have names and tolerances and no axes: the shape `()` stands for any. Cells have to be equal; tensors
    without groups have the default tolerance, `spec.DEFAULT_RTOL`.
    """
    exact, rounded = (ColumnGroup(rtol=0.0),), (ColumnGroup(rtol=1e-6),)
    return (
        TensorSpec(DEPTH, 'float32', (), 'what the LiDAR measured in each pixel', 'm', rounded),
        TensorSpec(CELLS, 'int64', (), 'cell of each point of the frustum', groups=exact),
        TensorSpec(POOLED, 'float32', (), 'sums of cells'),
        TensorSpec(OTHER_ORDER, 'float32', (), "LiDAR's map by the file of the other order"),
        TensorSpec(
            UNROUNDED, 'float32', (), "LiDAR's map with the weights of the checkpoint", groups=(HALF,)
        ),
    )
