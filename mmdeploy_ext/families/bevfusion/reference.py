"""BEVFusion in PyTorch as a stepper: the detector as it is, spconv on one thread."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.compat import single_thread
from mmdeploy_ext.consumers.cuda_bevfusion.cuda import DEPTH, OTHER_ORDER, POOLED, UNROUNDED
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.families.bevfusion.cuda_graphs import HEAD, transform_of
from mmdeploy_ext.families.bevfusion.graphs import TABLES
from mmdeploy_ext.families.bevfusion.runtime.frames import (
    MATRICES,
    check_calibration,
    check_images,
)
from mmdeploy_ext.families.parts.lidar_parts import Watch, watching
from mmdeploy_ext.families.parts.sparse_graph import backbone_graph, half_encoder
from mmdeploy_ext.models.bevfusion.rig import Rig, read_rig
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import FusedFrame, StepResult
from mmdeploy_ext.runtime.points import check_in_range, check_points


class Reference:
    """The detector's own test path; hooks read what is between its parts."""

    state = None

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.device = next(model.parameters()).device

    def reset(self) -> None:
        """Nothing to do: there is no memory."""

    def step(self, frame: FusedFrame) -> StepResult:
        """Run one frame; what `hooks` keep is given besides the boxes.

        Points, matrices and shapes that cannot be raise the same errors as of `BEVFusionOnnx`.
        """
        images, cloud = self._inputs(frame)
        with torch.no_grad(), single_thread(), watching(self.hooks()) as kept:
            found = self.model.predictions(images, cloud, [frame.calibration])
            (boxes,) = self.model.heads['object'].get_bboxes(found)
            if images is not None:
                rig = read_rig([frame.calibration], self.device, images.shape[1])
                kept |= self.of_rig(rig)
            kept |= self.more(found, cloud)
        outputs = {name: value.cpu().numpy() for name, value in kept.items()}
        given = {name: frame.calibration[name] for name in MATRICES if name in frame.calibration}
        given |= {} if frame.images is None else dict(images=frame.images)
        for name, array in dict(given, points=frame.points, **outputs).items():
            tap(name, torch.from_numpy(np.ascontiguousarray(array)))  # for `collect_taps` around this step
        return StepResult(outputs, detections(boxes))

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Return what the head keeps of boxes of the graph; see `SequenceFamily.synthetic_outputs`.

        Graphs of other contracts than the portable one give what boxes are made of: the head's own coder
        decodes it.
        """
        head = self.model.heads['object']
        if 'boxes' not in outputs:
            (found,) = head.bbox_coder.decode(*head_values(outputs, head.num_classes))
            return detections(head.spread_out(found))
        names = dict(bboxes='boxes', scores='scores', labels='labels')
        rows = outputs['labels'] >= 0
        found = {name: torch.from_numpy(outputs[output][rows]) for name, output in names.items()}
        return detections(head.spread_out(found))

    def _inputs(self, frame: FusedFrame) -> tuple[torch.Tensor | None, list[torch.Tensor] | None]:
        """Return pictures (1, N, 3, H, W) and the points of a frame, None without a sensor."""
        images = cloud = None
        if 'lidar' in self.model.sensors:
            lidar = self.model.encoders['lidar']
            points = check_points(frame.points, int(lidar.in_channels), frame.name)
            check_in_range(points, lidar.voxel_layer.point_cloud_range, frame.name)
            cloud = [torch.from_numpy(points).to(self.device)]
        if 'camera' in self.model.sensors:
            checked = check_images(frame, transform_of(self.model).image_size)
            check_calibration(frame.calibration, len(checked), frame.name)
            images = torch.from_numpy(checked)[None].to(self.device)
        return images, cloud

    def hooks(self) -> dict[torch.nn.Module, Watch]:
        """Return what watches the parts of the model."""
        hooks: dict[torch.nn.Module, Watch] = {}
        if 'lidar' in self.model.sensors:
            hooks[self.model.encoders['lidar'].encoder] = lambda _, given: dict(bev=given)
        if 'camera' in self.model.sensors and transform_of(self.model).uses_points:
            hooks[transform_of(self.model).dtransform] = lambda given, _: {DEPTH: given[0]}
        return hooks

    def of_rig(self, rig: Rig) -> dict[str, torch.Tensor]:
        """Return what the rig's graph gives."""
        cells = transform_of(self.model).cells(rig)[0]
        return dict(cells=cells) | dict(zip(TABLES, transform_of(self.model).pool_tables(cells), strict=True))

    def more(self, found: dict[str, torch.Tensor], cloud: Any) -> dict[str, torch.Tensor]:
        """Return what is compared besides; `found` is of the head, `cloud` one of points (P, V)."""
        return {}


def head_values(outputs: Mapping[str, np.ndarray], classes: int) -> list[torch.Tensor]:
    """Return scores (1, K, Q), centres, heights, sizes, turns and velocities (1, ., Q) for the coder.

    The outputs are those of CUDA-BEVFusion's head, or of Autoware's node: its boxes have length, width and
    a heading from x counter-clockwise, those of the coder width, length and one from -y clockwise.
    """
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in outputs.items()}
    if 'bbox_pred' not in tensors:
        return [tensors[name] for name in ('score', 'reg', 'height', 'dim', 'rot', 'vel')]
    x, y, z, length, width, height, sine, cosine, *velocity = tensors['bbox_pred']
    scores = torch.nn.functional.one_hot(tensors['label_pred'], classes).T * tensors['score']
    rows = [[x, y], [z], [width, length, height], [-cosine, -sine], velocity]
    return [scores[None], *(torch.stack(row)[None] for row in rows)]


class PartsReference(Reference):
    """The detector with the LiDAR kernels as float16 holds them, and what is between its parts.

    The files of CUDA-BEVFusion's contract have these kernels in float16; what follows them is compared as
    float32 is, and the map of the checkpoint's own kernels beside it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.exact = model.encoders['lidar'].encoder
        self.model = copy.deepcopy(model)
        lidar = self.model.encoders['lidar']
        lidar.set_submodule(lidar.encoder_path, half_encoder(self.exact))
        self.output = backbone_graph(self.exact).output

    def hooks(self) -> dict[torch.nn.Module, Watch]:
        transform = transform_of(self.model)

        def lifted(_: object, joint: torch.Tensor) -> dict[str, torch.Tensor]:
            weights, features = transform.split(joint)
            return dict(camera_feature=features.permute(0, 2, 3, 1), camera_depth_weights=weights)

        return {
            transform.dtransform: lambda given, _: {DEPTH: given[0]},
            transform.depthnet: lifted,
            transform.downsample: lambda given, seen: {POOLED: given[0], 'feat_out': seen},
            self.model.encoders['lidar'].encoder: lambda _, found: {self.output: found, OTHER_ORDER: found},
            self.model.heads['object']: lambda given, _: dict(middle=given[0]),
        }

    def of_rig(self, rig: Rig) -> dict[str, torch.Tensor]:
        """See `Reference`; no graph gives it, the runtime computes it."""
        return dict(cells=transform_of(self.model).cells(rig)[0])

    def more(self, found: dict[str, torch.Tensor], cloud: Any) -> dict[str, torch.Tensor]:
        features, coordinates = self.model.encoders['lidar'].voxelize(cloud)
        head = dict(found, score=self.model.heads['object'].scores(found), reg=found['center'])
        exact = {UNROUNDED: self.exact(features, coordinates, 1)}
        return {**{name: head[name] for name in HEAD}, **exact}


def detections(found: dict[str, torch.Tensor]) -> Detections3D:
    """Return what `TransFusionHead.get_bboxes` gives of one sample, best first, in columns of mmdet3d 1.0.

    The columns are moved here and the heading is taken from its sine and cosine, so that the runtime's
    `in_lidar_columns` is compared with something else than itself.
    """
    order = found['scores'].argsort(descending=True, stable=True)
    boxes, scores, labels = (found[name][order].cpu().numpy() for name in ('bboxes', 'scores', 'labels'))
    x_y_z, (width, length, height), yaw = boxes[:, :3], boxes[:, 3:6].T, boxes[:, 6]
    heading = np.arctan2(-np.cos(yaw), -np.sin(yaw))
    columns = np.stack([length, width, height, heading], axis=1)
    return Detections3D(np.concatenate([x_y_z, columns, boxes[:, 7:]], axis=1), scores, labels)
