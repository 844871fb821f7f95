"""BEVFusion's graphs: cells of a rig, the sparse backbone, and pictures, points and its map to boxes.

Glossary: N cameras, D depth bins, h, w cells of a feature map, P points, V values per point, C channels,
X, Y cells of the bird's-eye view, Q queries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.exporting.fold import fuse
from projects.mmdet3d_plugin.bevfusion.rig import Rig
from projects.mmdet3d_plugin.common.sparse_graph import backbone_graph, model_spec, starts_single

if TYPE_CHECKING:
    from mmdeploy_ext.contract.option import Options

FRAME_MATRICES = ('lidar2image', 'img_aug_matrix', 'lidar_aug_matrix')
RIG_MATRICES = ('camera_intrinsics', 'camera2lidar', 'img_aug_matrix', 'lidar_aug_matrix')
MEANINGS = dict(
    camera_intrinsics='camera to picture as it was taken, pixels',
    camera2lidar='camera to LiDAR, before the augmentation of points',
    lidar2image='LiDAR before the augmentation to picture as it was taken',
    img_aug_matrix='picture as it was taken to input of the network, pixels',
    lidar_aug_matrix='LiDAR to augmented LiDAR; a unit matrix when it is deployed',
)


class RigCells(nn.Module):
    """The cell of each point of the frustum, for one calibration."""

    def __init__(self, model: nn.Module) -> None:
        """Keep the view transform of a `BEVFusion`."""
        super().__init__()
        self.transform = model.encoders['camera']['vtransform']

    def forward(self, intrinsics: Tensor, camera2lidar: Tensor, img_aug: Tensor, lidar_aug: Tensor) -> Tensor:
        """Return (N, D, h, w) int64, see `ViewTransform.cells`; matrices (N, 4, 4), and (4, 4) of points."""
        rig = Rig(img_aug[None], lidar_aug[None], intrinsics[None], camera2lidar[None])
        return self.transform.cells(rig)[0]


class FusedFrame(nn.Module):
    """Pictures, points and the LiDAR's map to boxes: all of a frame but the sparse backbone."""

    def __init__(self, model: nn.Module) -> None:
        """Keep the parts of a `BEVFusion` with batch normalisation folded."""
        super().__init__()
        self.model, self.sensors = model, model.sensors

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return `boxes` (Q, 9), `scores` (Q,) and `labels` (Q,) of the head's `candidates`.

        Inputs are those of `frame_inputs`.
        """
        given = dict(zip(frame_inputs(self.model), inputs, strict=True))
        maps = dict(lidar=given.get('bev'))
        if 'camera' in self.sensors:
            maps['camera'] = self.camera_view(given)
        joint = self.model.joined([maps[name] for name in self.sensors])
        head = self.model.heads['object']
        boxes, scores, labels = head.candidates(head(joint))
        return boxes[0], scores[0], labels[0]

    def camera_view(self, given: dict[str, Tensor]) -> Tensor:
        """Return (1, C, X, Y) of the cameras."""
        transform, depth = self.model.encoders['camera']['vtransform'], None
        if transform.uses_points:
            rig = Rig(**{name: given[name][None] for name in FRAME_MATRICES})
            depth = transform.depth_maps([given['points']], rig)[0]
        return self.model.lifted(given['img'], depth, given['cells'][None])


def frame_inputs(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the inputs of `FusedFrame`."""
    names: list[str] = []
    if 'camera' in model.sensors:
        names += ['img', 'cells']
        if model.encoders['camera']['vtransform'].uses_points:
            names += ['points', *FRAME_MATRICES]
    return (*names, *(['bev'] if 'lidar' in model.sensors else []))


def graphs(model: nn.Module, options: Options, cameras: int = 6) -> list[Graph]:
    """Return the rig's graph, the sparse backbone, and the frame's; those of sensors that there are."""
    found = []
    if 'camera' in model.sensors:
        found.append(rig_graph(model, cameras))
    shape = None
    if 'lidar' in model.sensors:
        from mmdeploy_ext.sparse import portable

        sparse = backbone_graph(model.encoders['lidar'].encoder)
        backbone, shape = portable.to_onnx(sparse, opset=options.opset), sparse.output_shape
        spec = starts_single(model_spec(backbone, 'bevfusion/lidar'))
        found.append(Graph('lidar', None, spec, {}, backbone))
    return [*found, frame_graph(model, shape, cameras)]


def rig_graph(model: nn.Module, cameras: int) -> Graph:
    """Return the graph that is run once for a calibration."""
    inputs = tuple(_matrix(name, cameras) for name in RIG_MATRICES)
    shape = (cameras, *model.encoders['camera']['vtransform'].frustum.shape[:3])
    meaning = 'cell of each point of the frustum, x * Y + y; X * Y for none'
    cells = TensorSpec('cells', 'int64', shape, meaning, groups=(ColumnGroup(rtol=0.0),))
    eye = torch.eye(4)
    example = {one.name: eye.expand(*one.axes).clone() for one in inputs}
    return Graph('rig', RigCells(model).eval(), GraphSpec('bevfusion/rig', inputs, (cells,)), example)


def frame_graph(model: nn.Module, bev: tuple[int, ...] | None, cameras: int) -> Graph:
    """Return the graph of a frame.

    Args:
        model: a `BEVFusion`.
        bev: (1, C, X, Y) of the sparse backbone; None without LiDAR.
        cameras: N.
    """
    folded = fuse(model)
    specs = _frame_specs(model, bev, cameras)
    inputs = tuple(specs[name] for name in frame_inputs(model))
    queries = model.heads['object'].num_proposals
    kinds = dict(
        boxes=('float32', (queries, 9), 'bottom centre, w, l, h, yaw, velocity; m, rad, m/s'),
        scores=('float32', (queries,), 'probability'),
        labels=('int64', (queries,), 'class; -1 for a box out of range'),
    )
    outputs = tuple(TensorSpec(name, *facts, compare='detections') for name, facts in kinds.items())
    example = {one.name: _example(one) for one in inputs}
    module = FusedFrame(folded).eval()
    return Graph('frame', module, GraphSpec('bevfusion/frame', inputs, outputs), example)


def _matrix(name: str, cameras: int) -> TensorSpec:
    axes = (4, 4) if name == 'lidar_aug_matrix' else (cameras, 4, 4)
    return TensorSpec(name, 'float32', axes, MEANINGS[name], single=True)


def _frame_specs(model: nn.Module, bev: tuple[int, ...] | None, cameras: int) -> dict[str, TensorSpec]:
    found = {name: _matrix(name, cameras) for name in FRAME_MATRICES}
    if bev is not None:
        found['bev'] = TensorSpec('bev', 'float32', tuple(bev), "bird's-eye view of the sparse backbone")
    if 'camera' in model.sensors:
        transform = model.encoders['camera']['vtransform']
        size = (cameras, 3, *transform.image_size)
        cells = (cameras, *transform.frustum.shape[:3])
        found['img'] = TensorSpec('img', 'float32', size, 'pictures, normalised')
        found['cells'] = TensorSpec('cells', 'int64', cells, "of the rig's graph")
        meaning = 'augmented LiDAR frame'
        found['points'] = TensorSpec('points', 'float32', ('P', 3), meaning, 'm', single=True)
    return found


def _example(spec: TensorSpec) -> Tensor:
    """Return a tensor that is traced."""
    generator = torch.Generator().manual_seed(0)
    shape = tuple(16 if isinstance(axis, str) else axis for axis in spec.axes)
    if spec.name in MEANINGS:
        return torch.eye(4).expand(*shape).clone()
    if spec.dtype == 'int64':
        return torch.zeros(shape, dtype=torch.int64)
    return torch.rand(shape, generator=generator)


def postprocess_facts(model: nn.Module) -> dict[str, Any]:
    """Return what the metadata tells of the model's inputs, its view, and how its head's values are boxes."""
    coder = model.heads['object'].bbox_coder
    facts = dict(
        sensors=list(model.sensors),
        queries=int(model.heads['object'].num_proposals),
        uses_points=False,
        nms=model.heads['object'].nms,
        coder=dict(
            pc_range=list(coder.pc_range),
            voxel_size=list(coder.voxel_size),
            out_size_factor=int(coder.out_size_factor),
            post_center_range=coder.post_center_range and list(coder.post_center_range),
            score_threshold=coder.score_threshold,
        ),
    )
    if 'camera' in model.sensors:
        transform = model.encoders['camera']['vtransform']
        facts.update(uses_points=bool(transform.uses_points), view=_view(transform))
    return facts


def _view(transform: nn.Module) -> dict[str, Any]:
    """Return what decides the cells of a frustum, see `runtime.bevfusion_det.geometry.View`."""
    grid = transform.frustum.detach().cpu()
    numbers = dict(columns=grid[0, 0, :, 0], rows=grid[0, :, 0, 1], depths=grid[:, 0, 0, 2])
    numbers |= dict(centre=transform.bx, step=transform.dx, count=transform.nx)
    found = {name: value.detach().cpu().tolist() for name, value in numbers.items()}
    return dict(found, image_size=list(transform.image_size))
