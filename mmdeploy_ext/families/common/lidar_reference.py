"""LiDAR detectors in PyTorch as steppers: unpatched, spconv on one thread."""

import abc
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import Box3DMode

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.last_test import LastTest
from mmdeploy_ext.families.common.lidar_parts import Hook, bev_of, collected, parts_of
from mmdeploy_ext.families.common.options import CONVENTIONS
from mmdeploy_ext.families.common.pillars import width_of_points
from mmdeploy_ext.families.common.samples import BOX_TYPES, detections_in_1x
from mmdeploy_ext.families.sequence import not_compared
from mmdeploy_ext.families.synthetic.moments import plain_sweep
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import StepResult, Sweep
from mmdeploy_ext.runtime.points import check_in_range, check_points
from mmdeploy_ext.spec.preparation import VoxelRule
from mmdeploy_ext.upstream.compat import single_thread


class LidarReference(abc.ABC):
    """The detector's own test path; hooks read the tensors between its parts."""

    state = None
    """It has no memory."""

    def __init__(
        self,
        model: torch.nn.Module,
        output_names: tuple[str, ...],
        flatten: Callable[[Any], tuple[torch.Tensor, ...]],
    ) -> None:
        self.model, self.test = model, LastTest(model)
        self._unread: set[str] = set()
        self.parts = parts_of(model)
        self.output_names = output_names
        self.flatten = flatten
        self.width = width_of_points(self.parts)
        self.device = next(model.parameters()).device

    @property
    def notes(self) -> list[str]:
        convention = self.model.box_convention
        about = f'trained with boxes of mmdet3d {convention}; results are compared as boxes of 1.x'
        return [*([about] if convention == CONVENTIONS[0] else []), *not_compared(self._unread)]

    def reset(self) -> None:  # noqa: B027
        """Nothing to do: no memory."""

    def voxel_layer(self) -> tuple[torch.nn.Module, str, int]:
        return self.parts.voxel_layer, 'zyx', self.width

    def special_samples(self, rule: Any, sample: Sweep) -> Iterable[Sweep]:
        return ()

    def plain_sample(self, rule: VoxelRule, sample: Sweep) -> Sweep:
        return plain_sweep(sample, rule.point_cloud_range)

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        encoders = self.parts.voxel_encoder, self.parts.middle_encoder
        return dict(
            backbone=[(self.model, 'voxelize'), *((encoder, 'forward') for encoder in encoders)],
            boxes=[(self.parts.head, 'get_bboxes')],
        )

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Return the boxes of the last sweep, best first, by its test path with these outputs of the head."""
        arrays = {name: np.array(outputs[name], order='C') for name in self.output_names}
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        with single_thread():
            (result,) = self.test.again({f'{self.parts.prefix}bbox_head.forward': self.head_outputs(tensors)})
        return detections_in_1x(result.get('pts_bbox', result), self.model.box_convention)

    @abc.abstractmethod
    def head_outputs(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        """Return `tensors` as the head's `forward` does."""

    def step(self, sweep: Sweep) -> StepResult:
        """Run one sweep through `simple_test`.

        Outputs are the head's, `bev` (1, C, H, W), H along y and W along x, and the values of `hooks`.
        """
        check_in_range(
            check_points(sweep.points, self.width, sweep.name),
            self.parts.voxel_layer.point_cloud_range,
            sweep.name,
        )
        points = np.array(sweep.points, np.float32)  # not what the check returns, which the runner takes too
        tap('points', torch.from_numpy(points))
        data = self.forward_arguments(sweep, points)
        with single_thread(), collected(self.hooks()) as watched:
            (result,) = self.test.run(return_loss=False, rescale=True, **data)
        head_outputs = zip(self.output_names, self.flatten(watched.pop('head')), strict=True)
        tensors = dict(watched, **dict(head_outputs))
        for name, value in tensors.items():
            tap(name, value)  # for `collect_taps` around this step
        outputs = {name: value.cpu().numpy() for name, value in tensors.items()}
        boxes = detections_in_1x(result.get('pts_bbox', result), self.model.box_convention)
        self._unread |= self.test.unread()
        return StepResult(outputs, boxes)

    def forward_arguments(self, sweep: Sweep, points: np.ndarray) -> dict[str, Any]:
        """Return the arguments of the detector's `forward`; `points` are (P, D) float32."""
        meta = dict(
            box_type_3d=BOX_TYPES[self.model.box_convention],
            box_mode_3d=Box3DMode.LIDAR,
            sample_idx=sweep.name,
            pts_filename=sweep.name,
            flip=False,
        )
        return dict(points=[[torch.from_numpy(points).to(self.device)]], img_metas=[[meta]])

    def hooks(self) -> dict[torch.nn.Module, Hook]:
        """Return module -> function of its inputs and output that returns tensors by name."""
        return {
            self.parts.middle_encoder: lambda _, output: dict(bev=bev_of(output)),
            self.parts.head: lambda _, output: dict(head=output),
        }
