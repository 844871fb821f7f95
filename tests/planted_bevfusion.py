"""Faults of BEVFusion: what a rig sees, depth maps, pooling, queries, boxes, and moments of info files."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from planting import arguments, planted, result, settings, traced

if TYPE_CHECKING:
    from collections.abc import Callable

HERE, RUNTIME = 'mmdeploy_ext.families.bevfusion', 'mmdeploy_ext.families.bevfusion.runtime'
VIEW, RIG, CELLS = (
    'mmdeploy_ext.models.bevfusion.view_transform:ViewTransform',
    'mmdeploy_ext.models.bevfusion.rig',
    'mmdeploy_ext.exporting.ops.cells',
)
HEAD, CODER = (
    'mmdeploy_ext.models.bevfusion.head:TransFusionHead',
    'mmdeploy_ext.models.bevfusion.coder:TransFusionBBoxCoder',
)
STEP, OF_RIG = f'{RUNTIME}.model:BEVFusionOnnx.step', f'{RUNTIME}.frames:FusionRuntime.of_rig'
DETECTIONS, SPREAD = f'{RUNTIME}.model:detections', f'{RUNTIME}.boxes:suppress'
MOMENT, POINTS = f'{RUNTIME}.frames:frame_of_rig', f'{RUNTIME}.frames:points_of'
VIEWS, RULE = 'mmdeploy_ext.preprocess.cameras:MultiViewRule', f'{HERE}.samples:fusion_rule'
TOY = 'bevfusion_varied'


def _traced(name: str, place: str, make: Callable) -> None:
    planted(name, TOY, (place, traced(make)))


# ---- what cameras see


def _rig(**changes: Callable) -> Callable:
    """Return a fault of the last argument, a rig."""

    def wrong(*args: Any) -> tuple:
        *others, rig = args
        return *others, dataclasses.replace(
            rig, **{name: change(getattr(rig, name)) for name, change in changes.items()}
        )

    return arguments(wrong)


def _first(matrices: torch.Tensor) -> torch.Tensor:
    return matrices[:, :1].expand_as(matrices)


def _unit(matrices: torch.Tensor) -> torch.Tensor:
    return torch.eye(4).expand_as(matrices) + 0 * matrices


for _place, _what in ((f'{VIEW}.cells', 'cells'), (f'{VIEW}.depth_maps', 'depth')):
    _traced(f"{_what}: the first camera's cut for all", _place, _rig(img_aug_matrix=_first))
    _traced(f'{_what}: points are taken as not moved', _place, _rig(lidar_aug_matrix=_unit))
    _traced(f'{_what}: pictures are taken as not cut', _place, _rig(img_aug_matrix=_unit))
_traced(
    'cells: the pose of cameras is transposed',
    f'{VIEW}.cells',
    _rig(camera2lidar=lambda poses: poses.transpose(2, 3)),
)
_traced(
    'cells: all cameras have the intrinsics of the first', f'{VIEW}.cells', _rig(camera_intrinsics=_first)
)
_traced('cells: cameras in the other order', f'{VIEW}.cells', result(lambda cells, *_: cells.flip(1)))
_traced(
    'cells: a bin of depth too far',
    f'{RIG}:seen_points',
    arguments(lambda frustum, rig: (frustum + torch.tensor([0.0, 0.0, 1.0]), rig)),
)
_traced(
    'cells: pixels at the middle of cells',
    f'{RIG}:seen_points',
    arguments(lambda frustum, rig: (frustum + torch.tensor([0.5, 0.5, 0.0]), rig)),
)
_traced(
    'cells: pixels are not multiplied by their depth',
    f'{RIG}:seen_points',
    arguments(
        lambda frustum, rig: (torch.cat([frustum[..., :2] / frustum[..., 2:], frustum[..., 2:]], -1), rig)
    ),
)
_traced(
    'cells: rounded down',
    f'{RIG}:cells_of',
    lambda original: (
        lambda points, first, step, count: original(
            torch.where(points < first, points - step, points), first, step, count
        )
    ),
)
_traced(
    'cells: rounded to the nearest',
    f'{RIG}:cells_of',
    arguments(lambda points, first, step, count: (points + step / 2, first, step, count)),
)
_traced(
    'cells: x and y of the grid',
    f'{RIG}:cells_of',
    arguments(lambda points, first, step, count: (points[..., [1, 0, 2]], first, step, count)),
)
_traced(
    'cells: in float32',
    f'{RIG}:seen_points',
    lambda original: lambda frustum, rig: _single(original, frustum, rig),
)


def _single(original: Callable, frustum: torch.Tensor, rig: Any) -> torch.Tensor:
    points = original(frustum, rig)
    return (points.float() * (1 + 2e-6)).double()


_traced(
    'cells: points of any height',
    f'{RIG}:cells_of',
    arguments(
        lambda points, first, step, count: (
            torch.cat([points[..., :2], points[..., 2:].clamp(first[2] + 0.1, first[2] + step[2] - 0.1)], -1),
            first,
            step,
            count,
        )
    ),
)

# ---- depth maps

_traced(
    'depth: the first point of a pixel',
    f'{CELLS}:LastInCell.forward',
    arguments(lambda self, cells, values: (self, cells.flip(1), values.flip(1))),
)
_traced(
    'depth: points behind the camera count',
    f'{RIG}:depth_maps',
    arguments(lambda points, rig, *rest: ([torch.cat([one, -one]) for one in points], rig, *rest)),
)
_traced('depth: in millimetres', f'{VIEW}.depth_maps', result(lambda maps, *_: maps * 1e3))
_traced(
    'depth: pixels are rounded',
    f'{VIEW}.depth_maps',
    lambda original: (
        lambda self, points, rig: original(
            self, points, dataclasses.replace(rig, img_aug_matrix=rig.img_aug_matrix + _half_pixel())
        )
    ),
)


def _half_pixel() -> torch.Tensor:
    matrix = torch.zeros(4, 4)
    matrix[:2, 3] = 0.5
    return matrix


_traced(
    'depth: the last row of the picture is lost',
    f'{VIEW}.depth_maps',
    result(lambda maps, *_: torch.cat([maps[..., :-1, :], maps[..., -1:, :] * 0], -2)),
)

# ---- pooling

_traced(
    'x and y of the pooled map', f'{VIEW}.pool_by_tables', result(lambda pooled, *_: pooled.transpose(2, 3))
)
_traced(
    'features of the pixel beside',
    f'{VIEW}.pool_tables',
    result(lambda tables, *_: (tables[0], (tables[1] - 1).clamp(min=0), *tables[2:])),
)
_traced(
    'a cell has 16 points at most',
    f'{VIEW}.pool_tables',
    result(lambda tables, *_: (*tables[:2], tables[2] * 0, tables[3] * 0, tables[4])),
)
_traced(
    'weights of the depth bin before',
    f'{VIEW}.pool_by_tables',
    arguments(lambda self, weights, features, tables: (self, weights.roll(1, 1), features, tables)),
)
_traced(
    'weights are not softmaxed',
    f'{VIEW}.split',
    lambda original: lambda self, joint: (joint[:, : self.D].sigmoid(), original(self, joint)[1]),
)
_traced(
    'features begin a channel early',
    f'{VIEW}.split',
    lambda original: (
        lambda self, joint: (original(self, joint)[0], joint[:, self.D - 1 : self.D + self.C - 1])
    ),
)
_traced(
    'the LiDAR first in the fuser',
    'mmdeploy_ext.models.bevfusion.fusion:ConvFuser.forward',
    arguments(lambda self, maps: (self, maps[::-1])),
)
_traced(
    'the coarser level of the neck',
    'mmdeploy_ext.models.bevfusion.fusion:BEVFusion.camera_maps',
    result(lambda maps, *_: torch.nn.functional.interpolate(maps[..., ::2, ::2], scale_factor=2)),
)

# ---- queries

_traced(
    'peaks at the border count',
    f'{HEAD}.peaks',
    lambda original: (
        lambda self, heat: torch.where(
            heat == torch.nn.functional.max_pool2d(heat, 3, stride=1, padding=1), heat, original(self, heat)
        )
    ),
)
_traced(
    'peaks of all classes',
    f'{HEAD}.peaks',
    lambda original: (
        lambda self, heat: (
            original(self, heat) * (heat == torch.nn.functional.max_pool2d(heat, 3, stride=1, padding=1))
        )
    ),
)
_traced('every cell may be a query', f'{HEAD}.peaks', result(lambda _, self, heat: heat))
_traced(
    'queries by their classes, cell by cell',
    f'{HEAD}.proposals',
    arguments(lambda self, heat: (self, heat.amax(1, keepdim=True).expand_as(heat))),
)
_traced(
    'a query less',
    f'{HEAD}.proposals',
    result(lambda cells, *_: torch.cat([cells[:, :-1], cells[:, -2:-1]], 1)),
)
_traced(
    'scores of the queries alone',
    f'{HEAD}.scores',
    lambda original: lambda self, found: original(self, {**found, 'heatmap': found['heatmap'] * 0 + 99.0}),
)
_traced(
    'scores of the heat map are forgotten',
    f'{HEAD}.scores',
    lambda original: (
        lambda self, found: original(
            self, {**found, 'query_heatmap_score': torch.ones_like(found['query_heatmap_score'])}
        )
    ),
)

# ---- boxes


def _boxes(change: Callable) -> Callable:
    """Return a fault of the values that boxes are made of: center, height, dim, rot, vel."""
    return arguments(lambda self, *values: (self, *change(*values)))


for _name, _change in {
    'centres a half cell off': lambda center, *rest: (center + 0.5, *rest),
    'x and y of centres': lambda center, *rest: (center.flip(1), *rest),
    'width and length have changed places': lambda center, height, dim, *rest: (
        center,
        height,
        dim[:, [1, 0, 2]],
        *rest,
    ),
    'yaw of cosine and sine': lambda center, height, dim, rot, *rest: (
        center,
        height,
        dim,
        rot.flip(1),
        *rest,
    ),
    'yaws of the left half-plane are turned': lambda center, height, dim, rot, *rest: (
        center,
        height,
        dim,
        torch.where(rot[:, 1:] < 0, -rot, rot),
        *rest,
    ),
    'velocities of y and x': lambda *values: (*values[:-1], values[-1].flip(1)),
}.items():
    _traced(f'boxes: {_name}', f'{CODER}.boxes', _boxes(_change))
_traced(
    'boxes: z is that of the centre',
    f'{CODER}.boxes',
    result(
        lambda boxes, *_: torch.cat(
            [boxes[..., :2], boxes[..., 2:3] + boxes[..., 5:6] / 2, boxes[..., 3:]], -1
        )
    ),
)
_traced(
    'boxes of any height are kept',
    f'{CODER}.within_limits',
    arguments(
        lambda self, boxes, scores: (
            self,
            boxes * torch.tensor([1.0, 1, 0, *[1] * 6]) - torch.tensor([0, 0, 1.0, *[0] * 6]),
            scores,
        )
    ),
)
_traced(
    'boxes below the score threshold are kept',
    f'{CODER}.within_limits',
    arguments(lambda self, boxes, scores: (self, boxes, scores + 1)),
)
_traced(
    'a score threshold of 0.1',
    f'{CODER}.within_limits',
    arguments(lambda self, boxes, scores: (self, boxes, scores - 0.05)),
)
for _name, _change in {
    'columns of mmdet3d 0.x': lambda boxes, given: given,
    'headings turn the other way': lambda boxes, given: _with_yaw(boxes, given[:, 6] - np.pi / 2),
    'headings of 0.x a quarter off': lambda boxes, given: _with_yaw(boxes, -given[:, 6]),
}.items():
    planted(_name, TOY, (f'{RUNTIME}.boxes:in_lidar_columns', result(_change)))


def _with_yaw(boxes: Any, yaw: Any) -> Any:
    boxes[:, 6] = yaw
    return boxes


# ---- the runtime


def _frame(change: Callable) -> tuple[str, Callable]:
    return STEP, arguments(lambda self, frame: (self, change(frame)))


planted(
    'the second and the third camera have changed places',
    TOY,
    _frame(lambda frame: dataclasses.replace(frame, images=frame.images[[0, 2, 1, 3, 4, 5]])),
)
planted(
    'the cells of the first rig stay',
    TOY,
    (
        OF_RIG,
        lambda original: (
            lambda self, matrices, names, make: original(
                self, self.__dict__.setdefault('first_rig', matrices), names, make
            )
        ),
    ),
)
for _name in ('camera_intrinsics', 'camera2lidar', 'img_aug_matrix', 'lidar_aug_matrix'):
    planted(
        f"the rig's cache ignores {_name}",
        TOY,
        (
            OF_RIG,
            arguments(
                lambda self, matrices, names, make, lost=_name: (
                    self,
                    matrices,
                    tuple(name for name in names if name != lost),
                    make,
                )
            ),
        ),
    )
planted(
    'results are not sorted by their scores',
    TOY,
    (DETECTIONS, result(lambda found, *_: found[np.argsort(found.boxes[:, 0], kind='stable')])),
)
planted(
    'results out of range are kept',
    TOY,
    (DETECTIONS, arguments(lambda outputs: ({**outputs, 'labels': np.abs(outputs['labels'])},))),
)
planted(
    'results in the order of x after suppression',
    TOY,
    (SPREAD, result(lambda found, *_: found[np.argsort(found.boxes[:, 0], kind='stable')])),
)
planted('no suppression', TOY, (SPREAD, arguments(lambda found, nms: (found, None))))
planted(
    'suppression of all classes together',
    TOY,
    (
        SPREAD,
        arguments(
            lambda found, nms: (
                found,
                [dict(classes=list(range(10)), radius=nms['radius'], most=nms['most'])],
            )
        ),
    ),
)
planted(
    'suppression by a radius, not its square',
    TOY,
    (SPREAD, arguments(lambda found, nms: (found, dict(nms, radius=nms['radius'] ** 2)))),
)
planted(
    'suppression of the class before',
    TOY,
    (
        SPREAD,
        arguments(lambda found, nms: (found, dict(nms, classes=[label - 1 for label in nms['classes']]))),
    ),
)
planted(
    'ten boxes of a suppressed class at most',
    TOY,
    (SPREAD, arguments(lambda found, nms: (found, dict(nms, most=10)))),
)
planted(
    'results below 0.1 are dropped', TOY, (DETECTIONS, result(lambda found, *_: found[found.scores >= 0.1]))
)
planted(
    '100 results of 0.9 where nothing is',
    TOY,
    (
        DETECTIONS,
        result(
            lambda found, *_: (
                found
                if len(found)
                else (
                    type(found)(
                        np.ones((100, 9), np.float32), np.full(100, 0.9, np.float32), np.zeros(100, np.int64)
                    )
                )
            )
        ),
    ),
)

# ---- moments of info files


def _moment(change: Callable) -> tuple[str, Callable]:
    return MOMENT, result(
        lambda frame, *_: dataclasses.replace(
            frame, calibration={**frame.calibration, **change(frame.calibration)}
        )
    )


planted(
    'moments: camera to LiDAR is that of LiDAR to camera',
    TOY,
    _moment(lambda matrices: dict(camera2lidar=np.linalg.inv(matrices['camera2lidar']))),
    shared=True,
)
planted(
    'moments: LiDAR to picture without the intrinsics',
    TOY,
    _moment(lambda matrices: dict(lidar2image=np.linalg.inv(matrices['camera2lidar']))),
    shared=True,
)
planted(
    'moments: two cameras have changed places',
    TOY,
    _moment(
        lambda matrices: {
            name: matrix[[0, 2, 1, 3, 4, 5]] for name, matrix in matrices.items() if matrix.ndim == 3
        }
    ),
    shared=True,
)
planted(
    'moments: the cut is that of pictures that are not resized',
    TOY,
    _moment(
        lambda matrices: dict(
            img_aug_matrix=matrices['img_aug_matrix']
            / np.float32([[[1, 1, 1, 1], [1, 1, 1, 2], [1] * 4, [1] * 4]])
        )
    ),
    shared=True,
)
planted(
    'moments: the channels are not swapped',
    TOY,
    (
        RULE,
        result(
            lambda rule, *_: dataclasses.replace(rule, views=dataclasses.replace(rule.views, to_rgb=False))
        ),
    ),
    shared=True,
)
planted(
    'moments: the crop a row lower',
    TOY,
    (
        RULE,
        result(
            lambda rule, *_: dataclasses.replace(
                rule, views=dataclasses.replace(rule.views, crop=(rule.views.crop[0] + 1, rule.views.crop[1]))
            )
        ),
    ),
    shared=True,
)
planted(
    'moments: mean and std of the other order',
    TOY,
    (
        RULE,
        result(
            lambda rule, *_: dataclasses.replace(
                rule,
                views=dataclasses.replace(rule.views, mean=rule.views.mean[::-1], std=rule.views.std[::-1]),
            )
        ),
    ),
    shared=True,
)
planted(
    'moments: pictures are resized bilinearly',
    TOY,
    (
        'mmdeploy_ext.preprocess.cameras:resize_pillow',
        lambda original: lambda *args, resample, **given: original(*args, resample='bilinear', **given),
    ),
    shared=True,
)
planted(
    'moments: a sweep of the past less', TOY, (RULE, settings(sweeps=lambda count: count - 1)), shared=True
)
planted(
    'moments: the age of a sweep has the other sign',
    TOY,
    (POINTS, result(lambda points, *_: points * np.float32([1, 1, 1, 1, -1]))),
    shared=True,
)
planted(
    'class names are sorted',
    TOY,
    ('mmdeploy_ext.exporting.model:class_names', result(lambda names, *_: tuple(sorted(names)))),
    shared=True,
)
