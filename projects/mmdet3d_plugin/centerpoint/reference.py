"""CenterPoint in PyTorch as a stepper: mmdet3d's detector as it is, spconv on one thread.

Glossary: P points, D values per point, N voxels, C channels.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import StepResult, Sweep
from mmdeploy_ext.runtime.points import check_in_range, check_points
from mmdeploy_ext.stack.compat import single_thread
from projects.mmdet3d_plugin.centerpoint.graphs import box_rule, flat_outputs
from projects.mmdet3d_plugin.centerpoint.pillars import has_pillars, point_width
from projects.mmdet3d_plugin.common.parts import Parts, parts_of


class Reference:
    """The detector's own test path; hooks read what is between its parts and are removed after each sweep."""

    state = None

    def __init__(
        self,
        model: torch.nn.Module,
        rule: Callable[[torch.nn.Module], Any] = box_rule,
        flatten: Callable[[Any], tuple[torch.Tensor, ...]] = flat_outputs,
    ) -> None:
        """Keep a detector in evaluation mode.

        Args:
            model: a `CenterPoint`, or another one with such parts.
            rule: head -> what names its outputs.
            flatten: makes one tuple of what the head gives.
        """
        self.model = model
        self.parts = parts_of(model)
        self.output_names = rule(self.parts.head).output_names
        self.flatten = flatten
        sparse = not has_pillars(model)
        inside = self.parts.middle_encoder.in_channels if sparse else point_width(self.parts.voxel_encoder)
        self.width = int(inside)
        self.device = next(model.parameters()).device

    def reset(self) -> None:
        """Nothing to do: there is no memory."""

    def step(self, sweep: Sweep) -> StepResult:
        """Run one sweep through `simple_test`.

        Raises:
            DataError: points that cannot be; the same as of `CenterPointOnnx`.
        """
        from mmdet3d.core.bbox import LiDARInstance3DBoxes

        points = check_points(sweep.points, self.width, sweep.name)
        check_in_range(points, self.parts.voxel_layer.point_cloud_range, sweep.name)
        tap('points', torch.from_numpy(points))
        meta = dict(box_type_3d=LiDARInstance3DBoxes)
        with torch.no_grad(), single_thread(), _watched(self.parts) as found:
            (result,) = self.model(
                return_loss=False,
                rescale=True,
                points=[[torch.from_numpy(points).to(self.device)]],
                img_metas=[[meta]],
            )
        tensors = dict(zip(self.output_names, self.flatten(found['head']), strict=True))
        tensors = dict(bev=found['bev'], **tensors)
        for name, value in tensors.items():
            tap(name, value)  # for `collect_taps` around this step
        outputs = {name: value.cpu().numpy() for name, value in tensors.items()}
        return StepResult(outputs, detections(result.get('pts_bbox', result)))


@contextlib.contextmanager
def _watched(parts: Parts) -> Iterator[dict[str, Any]]:
    """Collect the encoder's result and the head's raw outputs of the passes inside the block."""
    found: dict[str, Any] = {}
    watched = dict(bev=parts.middle_encoder, head=parts.head)
    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, output))
        for name, part in watched.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def detections(result: dict[str, Any]) -> Detections3D:
    """Return mmdet3d's result of one sample in descending score order; without velocities they are zero."""
    boxes = result['boxes_3d'].tensor.numpy()
    scores, labels = result['scores_3d'].numpy(), result['labels_3d'].numpy()
    if boxes.shape[1] < 9:
        boxes = np.concatenate([boxes, np.zeros((len(boxes), 9 - boxes.shape[1]), boxes.dtype)], axis=1)
    order = np.argsort(-scores, kind='stable')
    return Detections3D(boxes[order], scores[order], labels[order].astype(np.int64))
