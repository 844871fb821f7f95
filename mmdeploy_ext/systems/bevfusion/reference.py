"""BEVFusion in PyTorch as a stepper: the unpatched detector, spconv on one thread.

Glossary: N cameras, H, W pictures of the network, P points, V values per point, K classes, Q queries.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.compat import single_thread
from mmdeploy_ext.families.common.lidar_parts import Watch, watching
from mmdeploy_ext.preprocess.fusion import FusionRule
from mmdeploy_ext.runtime.calibration import MATRICES, check_calibration
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import FusedFrame, StepResult, Sweep
from mmdeploy_ext.runtime.points import check_in_range, check_points
from mmdeploy_ext.synthetic.moments import fused_frames, plain_moment
from mmdeploy_ext.systems.bevfusion.graphs import TABLES, transform_of
from mmdeploy_ext.systems.bevfusion.model.rig import Rig, read_rig
from mmdeploy_ext.systems.bevfusion.runtime.frames import check_images
from mmdeploy_ext.util.taps import tap


class BEVFusionReference:
    state = None  # a stepper's memory between frames; this one has none

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.device = next(model.parameters()).device

    def reset(self) -> None:
        """Nothing to do: no memory."""

    def voxel_layer(self) -> tuple[torch.nn.Module, str, int] | None:
        if 'lidar' not in self.model.sensors:
            return None
        lidar = self.model.encoders['lidar']
        return lidar.voxel_layer, 'xyz', int(lidar.in_channels)

    def special_samples(self, rule: FusionRule, sample: FusedFrame) -> Iterable[Sweep]:
        return () if rule.views is None else itertools.islice(fused_frames(rule, 2), 1, 2)

    def plain_sample(self, rule: FusionRule, sample: FusedFrame) -> FusedFrame:
        limits = None if rule.voxels is None else rule.voxels.point_cloud_range
        return plain_moment(sample, limits)

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        methods: dict[str, list[tuple[object, str]]] = dict(frame=[(self.model, 'joined')])
        if 'camera' in self.model.sensors:
            transform = transform_of(self.model)
            methods |= dict(rig=[(transform, 'cells')], depth=[(transform, 'depth_maps')])
            methods['frame'].append((self.model, 'camera_maps'))
        if 'lidar' in self.model.sensors:
            methods['lidar'] = [(self.model, 'lidar_view')]
        return methods

    def step(self, frame: FusedFrame) -> StepResult:
        images, cloud = self._inputs(frame)
        with torch.no_grad(), single_thread(), watching(self.hooks()) as tensors:
            predictions = self.model.predictions(images, cloud, [frame.calibration])
            (boxes,) = self.model.heads['object'].get_bboxes(predictions)
            if images is not None:
                tensors |= self.of_rig(read_rig([frame.calibration], self.device, images.shape[1]))
            tensors |= self.other_tensors(predictions, cloud)
        outputs = {name: value.cpu().numpy() for name, value in tensors.items()}
        inputs = {name: frame.calibration[name] for name in MATRICES if name in frame.calibration}
        if frame.images is not None:
            inputs['images'] = frame.images
        for name, array in dict(inputs, points=frame.points, **outputs).items():
            tap(name, torch.from_numpy(np.ascontiguousarray(array)))  # for `collect_taps` around this step
        return StepResult(outputs, detections(boxes))

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        rows = outputs['labels'] >= 0
        names = dict(bboxes='boxes', scores='scores', labels='labels')
        boxes = {name: torch.from_numpy(outputs[output][rows]) for name, output in names.items()}
        return detections(self.model.heads['object'].suppress(boxes))

    def _inputs(self, frame: FusedFrame) -> tuple[torch.Tensor | None, list[torch.Tensor] | None]:
        images = cloud = None
        if 'lidar' in self.model.sensors:
            lidar = self.model.encoders['lidar']
            points = check_points(frame.points, int(lidar.in_channels), frame.name)
            check_in_range(points, lidar.voxel_layer.point_cloud_range, frame.name)
            cloud = [torch.from_numpy(np.array(frame.points, np.float32)).to(self.device)]
        if 'camera' in self.model.sensors:
            check_images(frame, transform_of(self.model).image_size)
            check_calibration(frame.calibration, len(frame.images), frame.name)
            images = torch.from_numpy(np.array(frame.images, np.float32))[None].to(self.device)
        return images, cloud

    def hooks(self) -> dict[torch.nn.Module, Watch]:
        hooks: dict[torch.nn.Module, Watch] = {}
        if 'lidar' in self.model.sensors:
            hooks[self.model.encoders['lidar'].encoder] = lambda _, output: dict(bev=output)
        if 'camera' in self.model.sensors and transform_of(self.model).uses_points:
            hooks[transform_of(self.model).dtransform] = lambda inputs, _: dict(depth=inputs[0])
        return hooks

    def of_rig(self, rig: Rig) -> dict[str, torch.Tensor]:
        """Return `TABLES` and `cells` (N, depth bins, rows, columns) of the rig's graph by name."""
        cells = transform_of(self.model).cells(rig)[0]
        return dict(cells=cells) | dict(zip(TABLES, transform_of(self.model).pool_tables(cells), strict=True))

    def other_tensors(self, predictions: dict[str, torch.Tensor], cloud: Any) -> dict[str, torch.Tensor]:
        """Return further tensors that a proof compares; `cloud` is a list with the points (P, V), or None."""
        return {}


def detections(boxes_of_head: dict[str, torch.Tensor]) -> Detections3D:
    """Return a head's `get_bboxes` of one sample, best first, in mmdet3d 1.0's columns.

    It shares no code with the runtime's `in_lidar_columns`: the heading comes from its sine and cosine.
    """
    order = boxes_of_head['scores'].argsort(descending=True, stable=True)
    boxes, scores, labels = (
        boxes_of_head[name][order].cpu().numpy() for name in ('bboxes', 'scores', 'labels')
    )
    x_y_z, (width, length, height), yaw = boxes[:, :3], boxes[:, 3:6].T, boxes[:, 6]
    heading = np.arctan2(-np.cos(yaw), -np.sin(yaw))
    columns = np.stack([length, width, height, heading], axis=1)
    return Detections3D(np.concatenate([x_y_z, columns, boxes[:, 7:]], axis=1), scores, labels)
