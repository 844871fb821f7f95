"""BEVFusion in PyTorch as a stepper: the detector as it is, spconv on one thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmdeploy_ext.runtime.bevfusion_det.model import check_calibration, check_images
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import StepResult
from mmdeploy_ext.runtime.points import check_in_range, check_points
from mmdeploy_ext.stack.compat import single_thread
from projects.mmdet3d_plugin.bevfusion.rig import read_rig

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.frames import FusedFrame


class Reference:
    """The detector's own test path; hooks read what is between its parts."""

    state = None

    def __init__(self, model: torch.nn.Module) -> None:
        """Keep a `BEVFusion` in evaluation mode."""
        self.model = model
        self.device = next(model.parameters()).device
        self.width = int(model.encoders['lidar'].in_channels)

    def reset(self) -> None:
        """Nothing to do: there is no memory."""

    def step(self, frame: FusedFrame) -> StepResult:
        """Run one frame; `cells` and `bev` are kept besides the boxes.

        Raises:
            DataError: points or matrices that cannot be; the same as of `BEVFusionOnnx`.
            ShapeError: of other shapes.
        """
        points = check_points(frame.points, self.width, frame.name)
        check_in_range(points, self.model.encoders['lidar'].voxel_layer.point_cloud_range, frame.name)
        transform, kept = self.model.encoders['camera']['vtransform'], {}
        images = torch.from_numpy(check_images(frame, transform.image_size))
        check_calibration(frame.calibration, len(images), frame.name)
        cloud, lidar = torch.from_numpy(points).to(self.device), self.model.encoders['lidar']
        hook = lidar.encoder.register_forward_hook(lambda _, __, output: kept.update(bev=output))
        try:
            with torch.no_grad(), single_thread():
                found = self.model.predictions(images[None].to(self.device), [cloud], [frame.calibration])
                (boxes,) = self.model.heads['object'].get_bboxes(found)
                rig = read_rig([frame.calibration], self.device, len(images))
                kept['cells'] = transform.cells(rig)[0]
        finally:
            hook.remove()
        outputs = {name: value.cpu().numpy() for name, value in kept.items()}
        return StepResult(outputs, detections(boxes))


def detections(found: dict[str, torch.Tensor]) -> Detections3D:
    """Return what `TransFusionHead.get_bboxes` gives of one sample, best first."""
    order = found['scores'].argsort(descending=True, stable=True)
    boxes, scores, labels = (found[name][order].cpu().numpy() for name in ('bboxes', 'scores', 'labels'))
    return Detections3D(boxes, scores, labels)
