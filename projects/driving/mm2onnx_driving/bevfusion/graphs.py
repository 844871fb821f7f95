"""BEVFusion's graphs: cells of a rig, depth maps, the sparse backbone, and the frame with the boxes.

Glossary: N cameras, D depth bins, h, w cells of a feature map, P points, C channels, X, Y cells of the
bird's-eye view, Q queries, R, R2, R3 rows of the tables, W width of the third table (set by the calibration).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mm2onnx_driving.bevfusion.runtime import BEVFusionFacts, Coder, ViewFacts
from mm2onnx_driving.bevfusion.view_transform import Rig
from mmdeploy_ext.families.common.lidar_graphs import portable_graph
from mmdeploy_ext.families.common.lidar_parts import OfModel
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

DEPTH_MATRICES = ('lidar2image', 'img_aug_matrix', 'lidar_aug_matrix')
"""Matrices of the depth maps."""
RIG_MATRICES = ('camera_intrinsics', 'camera2lidar', 'img_aug_matrix', 'lidar_aug_matrix')
"""Inputs of the rig's graph: they decide the cells of the frustum's points."""
TABLES = ('first', 'pixels', 'second', 'third', 'slots')
"""Outputs of the rig's graph and inputs of the frame's (`ViewTransform.pool_tables`).

They replace a scatter by gathers: a row of `first` lists points to add up, a row of `second` rows of `first`,
a row of `third` rows of `second`; `slots` has each cell's row. Row 0 is empty. An entry k means row k of the
table before in `second` and `third`, and point k - 1 in `first`; 0 is padding.
"""
TABLE_MEANINGS = dict(
    cells='cell of each frustum point, x * Y + y; X * Y if outside',
    first='frustum points in one cell, numbered from 1; 0 for none',
    pixels='feature map cell of each point in `first`',
    second='rows of `first` in one cell; 0 for none',
    third='rows of `second` in one cell; 0 for none',
    slots='row of a cell in the concatenated sums of `first`, `second` and `third`',
)
MEANINGS = dict(
    camera_intrinsics='camera to pixels of the original image',
    camera2lidar='camera to LiDAR before augmentation',
    lidar2image='LiDAR before augmentation to pixels of the original image',
    img_aug_matrix='pixels of the original image to pixels of the network input',
    lidar_aug_matrix='LiDAR to augmented LiDAR; the identity matrix in a deployment',
)


def transform_of(model: nn.Module) -> nn.Module:
    return model.encoders['camera']['vtransform']


class RigTables(nn.Module):
    """Calibration to the cell of each point of the frustum, and tables of the points of each cell."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.transform = transform_of(model)

    def forward(
        self, intrinsics: Tensor, camera2lidar: Tensor, img_aug: Tensor, lidar_aug: Tensor
    ) -> tuple[Tensor, ...]:
        """Return cells (N, D, h, w) int64 and `pool_tables`; `lidar_aug` is (4, 4), the others (N, 4, 4)."""
        rig = Rig(img_aug[None], lidar_aug[None], intrinsics[None], camera2lidar[None])
        cells = self.transform.cells(rig)[0]
        return cells, *self.transform.pool_tables(cells)


class DepthMaps(nn.Module):
    """Points to the depth that the LiDAR measured in each pixel."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.transform = transform_of(model)

    def forward(self, points: Tensor, *matrices: Tensor) -> Tensor:
        """Return (N, 1, height, width) metres of points (P, 3); pixels without points are 0.

        The last point in a pixel counts. The last matrix is (4, 4), the others (N, 4, 4).
        """
        rig = Rig(**{name: matrix[None] for name, matrix in zip(DEPTH_MATRICES, matrices, strict=True)})
        return self.transform.depth_maps([points], rig)[0]


class FrameNetwork(OfModel):
    """Pictures, depth maps and the LiDAR's map to boxes: the dense part, in float32."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        tensors = dict(zip(frame_inputs(self.model), inputs, strict=True))
        maps = dict(lidar=tensors.get('bev'))
        if 'camera' in self.model.sensors:
            transform = transform_of(self.model)
            lifted = self.model.lifted(tensors['img'], tensors.get('depth'))
            pooled = transform.pool_by_tables(*lifted, [tensors[name] for name in TABLES])
            maps['camera'] = transform.downsample(pooled)
        joined = self.model.joined([maps[name] for name in self.model.sensors])
        return boxes_of_map(self.model.heads['object'], joined)


def boxes_of_map(head: nn.Module, joined: Tensor) -> tuple[Tensor, ...]:
    """Return `boxes` (Q, 9), `scores` (Q,) and `labels` (Q,) of the head's input (1, C, X, Y).

    A box is x, y, z of the bottom, w, l, h, yaw from -y clockwise, vx, vy, in the LiDAR's frame, m, rad, m/s.
    The label is -1 if the head drops the box by range or score.
    """
    return tuple(rows[0] for rows in head.candidates(head(joined)))


def frame_inputs(model: nn.Module) -> list[str]:
    names: list[str] = []
    if 'camera' in model.sensors:
        names += ['img', *TABLES]
    if uses_points(model):
        names.append('depth')
    if 'lidar' in model.sensors:
        names.append('bev')
    return names


def uses_points(model: nn.Module) -> bool:
    return 'camera' in model.sensors and bool(transform_of(model).uses_points)


def graphs(model: nn.Module, options: Options, cameras: int = 6) -> list[Graph]:
    specs: dict[str, TensorSpec] = {}
    parts: list[Graph] = []
    if 'camera' in model.sensors:
        size = transform_of(model).image_size
        specs['img'] = TensorSpec('img', 'float32', (cameras, 3, *size), 'pictures, normalised')
        specs |= _table_specs(model, cameras)
        matrices = (_matrix_spec(name, cameras) for name in RIG_MATRICES)
        tables = (specs[name] for name in ('cells', *TABLES))
        parts.append(_graph('rig', RigTables(model), matrices, tables))
    if uses_points(model):
        size = transform_of(model).image_size
        meaning = 'LiDAR depth per pixel; 0 without a point'
        groups = (ColumnGroup(rtol=1e-6),)
        specs['depth'] = TensorSpec('depth', 'float32', (cameras, 1, *size), meaning, 'm', groups)
        points = TensorSpec('points', 'float32', ('P', 3), 'augmented LiDAR frame', 'm', single=True)
        inputs = (points, *(_matrix_spec(name, cameras) for name in DEPTH_MATRICES))
        parts.append(_graph('depth', DepthMaps(model), inputs, [specs['depth']]))
    if 'lidar' in model.sensors:
        lidar = portable_graph(model.encoders['lidar'].encoder, 'lidar', 'bevfusion', options)
        parts.append(lidar)
        axes = tuple(lidar.spec.outputs[0].axes)
        specs['bev'] = TensorSpec('bev', 'float32', axes, "bird's-eye view (BEV) from the sparse backbone")
    queries = model.heads['object'].num_proposals
    facts_of_outputs = dict(
        boxes=('float32', (queries, 9), 'bottom centre, w, l, h, yaw, velocity; m, rad, m/s'),
        scores=('float32', (queries,), 'probability'),
        labels=(
            'int64',
            (queries,),
            'class; -1 for a box out of range or below the score threshold',
        ),
    )
    outputs = (TensorSpec(name, *facts, compare='detections') for name, facts in facts_of_outputs.items())
    inputs = (specs[name] for name in frame_inputs(model))
    return [*parts, _graph('frame', FrameNetwork(model), inputs, outputs)]


def _graph(
    name: str, module: nn.Module, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
) -> Graph:
    spec = GraphSpec(f'bevfusion/{name}', tuple(inputs), tuple(outputs))
    example = {}
    for tensor in spec.inputs:
        shape = tuple(16 if isinstance(axis, str) else axis for axis in tensor.axes)
        if tensor.name in MEANINGS:
            example[tensor.name] = torch.eye(4).expand(*shape).clone()
        elif tensor.dtype == 'int64':
            example[tensor.name] = torch.zeros(shape, dtype=torch.int64)
        else:
            example[tensor.name] = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return Graph(name, module.eval(), spec, example)


def _matrix_spec(name: str, cameras: int) -> TensorSpec:
    axes = (4, 4) if name == 'lidar_aug_matrix' else (cameras, 4, 4)
    return TensorSpec(name, 'float32', axes, MEANINGS[name], single=True)


def _table_specs(model: nn.Module, cameras: int) -> dict[str, TensorSpec]:
    transform = transform_of(model)
    first, second = transform.tables.WIDTHS
    axes = dict(
        cells=(cameras, *transform.frustum.shape[:3]),
        first=('R', first),
        pixels=('R', first),
        second=('R2', second),
        third=('R3', 'W'),
        slots=(transform.tables.count,),
    )
    exact = (ColumnGroup(rtol=0.0),)
    return {
        name: TensorSpec(name, 'int64', sizes, TABLE_MEANINGS[name], groups=exact)
        for name, sizes in axes.items()
    }


def facts_of(model: nn.Module) -> BEVFusionFacts:
    head = model.heads['object']
    coder = head.bbox_coder
    has_cameras = 'camera' in model.sensors
    return BEVFusionFacts(
        sensors=list(model.sensors),
        queries=int(head.num_proposals),
        uses_points=has_cameras and bool(transform_of(model).uses_points),
        nms=head.nms,
        coder=Coder(
            pc_range=list(coder.pc_range),
            voxel_size=list(coder.voxel_size),
            out_size_factor=int(coder.out_size_factor),
            post_center_range=coder.post_center_range and list(coder.post_center_range),
            score_threshold=coder.score_threshold,
        ),
        view=view_of(model) if has_cameras else None,
    )


def view_of(model: nn.Module) -> ViewFacts:
    transform = transform_of(model)
    grid = transform.frustum.detach().cpu()
    return ViewFacts(
        image_size=list(transform.image_size),
        columns=grid[0, 0, :, 0].tolist(),
        rows=grid[0, :, 0, 1].tolist(),
        depths=grid[:, 0, 0, 2].tolist(),
        centre=transform.bx.detach().cpu().tolist(),
        step=transform.dx.detach().cpu().tolist(),
        count=transform.nx.detach().cpu().tolist(),
    )
