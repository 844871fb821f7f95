"""Operators that mmdet3d had before 1.0 and 1.0.0rc6 lacks: the repository's own ones, or mmcv's.

`mmdet3d.ops.bev_pool` is read from a copy of mmdet3d in the repository, if there is one. Otherwise names of
upstream's 0.11 to 0.18 have the signatures of these, and boxes in their conventions: x, y and z of the
bottom's centre, width, length, height, and yaw, clockwise from the negative y-axis.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mmdeploy_ext.upstream.compat import mmdet3d_operators as forms
from mmdeploy_ext.upstream.compat.operator_forms import noted

SYMBOLIC_REGISTRY = 'torch.onnx.symbolic_registry'
PACKAGE = 'mmdet3d.ops'
MODULES = (
    *('ball_query', 'furthest_point_sample', 'gather_points', 'group_points', 'interpolate', 'iou3d', 'knn'),
    *('roiaware_pool3d', 'voxel'),
)
"""Packages below `mmdet3d.ops` that 1.0 gave to mmcv."""
FOLDERS_ABOVE = 8


def points_in_boxes_gpu(points: Tensor, boxes: Tensor) -> Tensor:
    """First box (B, P) int32 of each point (B, P, 3) among boxes (B, T, 7); -1 outside of all."""
    box_of_points = points.new_full(points.shape[:2], -1, dtype=torch.int32)
    forms.points_in_boxes_gpu(boxes, points, box_of_points)
    return box_of_points


def points_in_boxes_batch(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points (B, P, 3) are in boxes (B, T, 7): (B, P, T) int32."""
    return forms.are_in_boxes(points, boxes).int()


def points_in_boxes_cpu(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points (P, 3) are in boxes (T, 7): (T, P) int32."""
    return forms.are_in_boxes(points[None], boxes[None])[0].t().int()


def boxes_iou_bev(first: Tensor, second: Tensor) -> Tensor:
    """IoU (M, N) of turned boxes (M, 5) and (N, 5), x1, y1, x2, y2, angle."""
    ious = first.new_zeros(len(first), len(second))
    forms.boxes_iou_bev(first, second, ious)
    return ious


def nms_gpu(
    boxes: Tensor,
    scores: Tensor,
    thresh: float,
    pre_maxsize: int | None = None,
    post_max_size: int | None = None,
) -> Tensor:
    """Rows that NMS keeps of turned boxes (N, 5) x1, y1, x2, y2, angle, best first."""
    order = scores.argsort(descending=True)[:pre_maxsize]
    kept = torch.zeros_like(order)
    return order[kept[: forms.nms_of_turned_boxes(boxes[order], kept, thresh)]][:post_max_size]


def nms_normal_gpu(boxes: Tensor, scores: Tensor, thresh: float) -> Tensor:
    """Rows that NMS keeps of boxes (N, 5) x1, y1, x2, y2, angle, which is not read; best first."""
    from torchvision.ops import nms

    return nms(boxes[:, :4].contiguous(), scores, thresh)


OWN: tuple[Callable[..., Tensor], ...] = (
    *(points_in_boxes_gpu, points_in_boxes_batch, points_in_boxes_cpu),
    *(boxes_iou_bev, nms_gpu, nms_normal_gpu),
)
OF_MMCV = {
    **{
        name: name
        for name in (
            *('DynamicScatter', 'GroupAll', 'QueryAndGroup', 'RoIAwarePool3d', 'Voxelization', 'ball_query'),
            *('dynamic_scatter', 'furthest_point_sample', 'furthest_point_sample_with_dist', 'gather_points'),
            *('grouping_operation', 'knn', 'three_interpolate', 'three_nn', 'voxelization'),
        )
    },
    'Points_Sampler': 'PointsSampler',
}
"""Name of mmdet3d before 1.0 -> name of `mmcv.ops`, with the same signature."""


def older_module(name: str, file: str) -> ModuleType | None:
    """Return what a user's file imports as a module below `mmdet3d.ops` that the imported mmdet3d lacks.

    `torch.onnx.symbolic_registry` is an empty registry: forks for OpenVINO ask it on their test path.
    """
    if name == SYMBOLIC_REGISTRY:
        return _symbolic_registry()
    package, _, below = name.removeprefix(f'{PACKAGE}.').partition('.')
    if not name.startswith(f'{PACKAGE}.') or f'{PACKAGE}.{package}' in sys.modules:
        return None
    if (folder := _own_folder(package, Path(file))) is not None:
        return importlib.import_module('.'.join(filter(None, [_named(folder), below])))
    if package not in MODULES:
        return None
    import mmcv.ops

    module = ModuleType(name)
    for function in OWN:
        setattr(module, function.__name__, noted(f'{PACKAGE}.{function.__name__} before 1.0', function))
    vars(module).update({older: getattr(mmcv.ops, of_mmcv) for older, of_mmcv in OF_MMCV.items()})
    return module


@functools.cache
def _symbolic_registry() -> ModuleType:
    functions: dict[tuple[str, str, int], Any] = {}

    def register_op(name: str, function: Any, domain: str, opset: int) -> None:
        functions[name, domain, opset] = function

    module = ModuleType(SYMBOLIC_REGISTRY)
    vars(module).update(
        register_op=register_op,
        is_registered_op=lambda *key: key in functions,
        get_registered_op=lambda *key: functions[key],
    )
    return module


def older_member(name: str, file: str) -> Any:
    """Return what a user's file imports as `mmdet3d.ops.bev_pool`, for example, or None."""
    package, _, member = name.rpartition('.')
    if package == PACKAGE and (module := older_module(name, file)) is not None:
        return getattr(module, member, module)  # a function may have its package's name
    names = older_module(f'{PACKAGE}.{MODULES[0]}', '') if package == PACKAGE else None
    return getattr(names, member, None)


def _own_folder(package: str, file: Path) -> Path | None:
    """The package of operators in a copy of mmdet3d, beside or above a file: `mmdetection3d/mmdet3d/ops`."""
    for parent in file.resolve().parents[:FOLDERS_ABOVE] if package else ():
        for copy in (parent, *sorted(parent.glob('*3d'))):
            folder = copy.joinpath(*PACKAGE.split('.'), package)
            if (folder / '__init__.py').is_file():
                return folder
        if (parent / '.git').exists():
            break
    return None


def _named(folder: Path) -> str:
    """Name of an imported package in a folder; its own would hide what the installed mmdet3d has."""
    name = f'own_mmdet3d_ops_{folder.name}'
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / '__init__.py', submodule_search_locations=[str(folder)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return name
