"""Pictures lifted into a bird's-eye view: the parts that the graphs of several systems share.

Glossary: N cameras, H, W network input in pixels, D depth bins, h, w feature map, C channels, Y, X rows and
columns of the view.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from torch import Tensor, nn
from torch.nn import functional

from mm2onnx_driving.common.camera import CameraFamily, LiftData, camera_graphs
from mm2onnx_driving.common.camera_reference import CameraReference
from mm2onnx_driving.common.runtime.lift_splat import BORDER, LiftFacts, border_points, frustum_places
from mm2onnx_driving.layers.datasets import MEAN, STD, resize_and_crop
from mm2onnx_driving.layers.lift_splat import camera_vectors, cells_of, frustum_points, only_map
from mmdeploy_ext.base.config import refused_values, replaced_entry, test_pipeline
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import ABSENT
from mmdeploy_ext.families.common.lidar_parts import OfModel
from mmdeploy_ext.families.synthetic.moments import special_drive
from mmdeploy_ext.graphs.passes.resize_conv import convolve_before_resize
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.preparation import MultiViewRule
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec
from mmdeploy_ext.upstream.operators.cells import CellTables, sum_by_tables

# Families of detectors that lift pictures into a bird's-eye view: rule of pictures, and build.


LOADER = 'PrepareImageInputs'
EXPECTED = {
    'upsample': (ABSENT, None, False),
    'img_view_transformer.accelerate': (ABSENT, None, False),  # it keeps the cells of the first frame
}
"""`expects` of families that lift pictures."""


class LiftFamily(CameraFamily):
    expects = EXPECTED
    ignores_places = True  # the motion is composed in float64
    data = LiftData()

    def check_coder(self, coder: Mapping[str, Any], key: str) -> None:
        pass  # its `pc_range` is x, y

    def preprocess_rule(self, cfg: Any) -> MultiViewRule:
        with refused_values(cfg, 'the test pipeline'):
            loaders = [step for step in test_pipeline(cfg) if step['type'] == LOADER]
            if len(loaders) != 1:
                raise ConfigError(
                    f'{cfg.filename}: the test pipeline has no {LOADER}, which loads the images'
                )
            config = loaders[0]['data_config']
            scale, resized, (left, top) = resize_and_crop(config)
            return MultiViewRule(
                mean=MEAN,
                std=STD,
                to_rgb=False,  # upstream subtracts the mean of R, G, B from B, G, R
                source=tuple(config['src_size']),
                scale=scale,
                resized=resized[::-1],
                crop=(top, left),
                size=tuple(config['input_size']),
                num_cameras=len(config['cams']),
                cameras=tuple(config['cams']),
            )

    def claims(self, cfg: Any) -> Any:
        claim = super().claims(cfg)
        return claim if 'img_view_transformer' in cfg.model else type(claim).NO

    def build(self, cfg: Any) -> nn.Module:
        model = super().build(cfg)
        model.rule = self.preprocess_rule(cfg)
        columns, rows, _ = (int(size) for size in model.img_view_transformer.grid_size)
        model.cell_tables = CellTables(columns * rows)
        return model


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


# Detectors that lift pictures into a bird's-eye view in PyTorch: the detector's own `forward`.


PLACED_BY = 'get_ego_coor', 'get_lidar_coor'
"""Upstream's methods that place lifted points."""


class LiftReference(CameraReference):
    """One frame of `img_inputs`, and no memory."""

    reads = ('lidar2img', 'intrinsics', 'ego_pose', 'timestamp_s')

    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        self.view_facts = view_facts(model)
        self._at_borders: dict[bytes, int] = {}
        super().__init__(model, notes)

    @property
    def notes(self) -> list[str]:
        if not any(self._at_borders.values()):
            return super().notes
        return [
            *super().notes,
            f'up to {max(self._at_borders.values())} lifted points of a frame are within {BORDER:g} cells '
            f"of a cell's border: here PyTorch places them in float64; in float32 it may take the "
            f'neighbouring cell',
        ]

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        return special_drive(sample, (0.5, 0.5, 0.5))

    def further_taps(self, frame: Frame) -> contextlib.AbstractContextManager[None]:
        return placed_in_float64(self.model.img_view_transformer)

    def calibration_of(self, frame: Frame) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Return camera to key ego (N, 4, 4), intrinsics (N, 3, 3), and post_rots and post_trans."""
        poses, count = sensor_poses(frame), len(frame.images)
        crop = self.model.rule.crop_matrix().astype(np.float64)
        post_rot, post_tran = np.eye(3), np.array([*crop[:2, 2], 0.0])
        post_rot[:2, :2] = crop[:2, :2]
        intrinsics = np.linalg.solve(crop, frame.intrinsics[:, :3, :3])
        self.count_border_points(poses, intrinsics, crop)
        return poses, intrinsics, [np.stack([matrix] * count) for matrix in (post_rot, post_tran)]

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        poses, intrinsics, shared = self.calibration_of(frame)
        unit = np.tile(np.eye(4), (len(frame.images), 1, 1))
        inputs = (frame.images, poses, unit, intrinsics, *shared, np.eye(3))
        return self.call_of(frame, [self.tensor(value)[None] for value in inputs])

    def call_of(self, frame: Frame, img_inputs: Sequence[Any], **how: Any) -> dict[str, Any]:
        meta = dict(self.meta_of(frame), box_type_3d=LiDARInstance3DBoxes)
        return dict(return_loss=False, points=None, img_metas=[[meta]], img_inputs=[[*img_inputs]], **how)

    def count_border_points(self, poses: np.ndarray, intrinsics: np.ndarray, crop: np.ndarray) -> None:
        rig = poses.tobytes() + intrinsics.tobytes()
        if rig not in self._at_borders:
            points = frustum_places(self.view_facts, poses, intrinsics, crop)
            self._at_borders[rig] = int(border_points(self.view_facts, points).sum())


@contextlib.contextmanager
def placed_in_float64(transformer: nn.Module) -> Iterator[None]:
    """Inside the block upstream's methods place lifted points in float64, rounded once, as the graph does.

    A cell is chosen by the place: in float32 the rounding of an engine would decide at a border.
    """

    def in_float64(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *matrices: method(*(matrix.double() for matrix in matrices)).float()

    with contextlib.ExitStack() as stack:
        for name in PLACED_BY:
            if hasattr(transformer, name):
                method = in_float64(getattr(transformer, name))
                stack.enter_context(replaced_entry(vars(transformer), name, method))
        yield


def sensor_poses(frame: Frame) -> np.ndarray:
    """Return camera to key ego (N, 4, 4) float64, by another product than the runtime."""
    return np.linalg.inv(np.asarray(frame.lidar2img, np.float64)) @ frame.intrinsics
