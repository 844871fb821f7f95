"""BEVFusion in PyTorch as a stepper: the unpatched detector, spconv on one thread.

Glossary: N cameras, H, W pictures of the network, P points, V values per point, K classes, Q queries.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.compat import single_thread
from mmdeploy_ext.consumers.cuda_bevfusion.cuda import DEPTH, OTHER_ORDER, POOLED, UNROUNDED
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.families.bevfusion.cuda_graphs import HEAD
from mmdeploy_ext.families.bevfusion.graphs import TABLES, transform_of
from mmdeploy_ext.families.bevfusion.runtime.frames import check_images
from mmdeploy_ext.families.parts.lidar_parts import Watch, watching
from mmdeploy_ext.families.parts.sparse_graph import backbone_graph, half_encoder
from mmdeploy_ext.models.bevfusion.rig import Rig, read_rig
from mmdeploy_ext.runtime.calibration import MATRICES, check_calibration
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import FusedFrame, StepResult
from mmdeploy_ext.runtime.points import check_in_range, check_points


class BEVFusionReference:
    """The detector's own test path; hooks read the tensors between its parts."""

    state = None  # a stepper's memory between frames; this one has none

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.device = next(model.parameters()).device

    def reset(self) -> None:
        """Nothing to do: there is no memory."""

    def step(self, frame: FusedFrame) -> StepResult:
        """Run one frame; the outputs are the tensors that `hooks`, `of_rig` and `other_tensors` give.

        `of_rig` is called if there are cameras.

        Invalid points, matrices and shapes raise the same errors as of `BEVFusionOnnx`, but any number of
        cameras is taken.
        """
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
        """Return the boxes of the graph's outputs after the head's suppression.

        It is called for `SequenceFamily.synthetic_outputs`. Graphs of other contracts than the portable one
        give the values of boxes, which the head's own coder decodes.
        """
        head = self.model.heads['object']
        if 'boxes' in outputs:
            rows = outputs['labels'] >= 0
            names = dict(bboxes='boxes', scores='scores', labels='labels')
            boxes = {name: torch.from_numpy(outputs[output][rows]) for name, output in names.items()}
        else:
            (boxes,) = head.bbox_coder.decode(*head_values(outputs, head.num_classes))
        return detections(head.suppress(boxes))

    def _inputs(self, frame: FusedFrame) -> tuple[torch.Tensor | None, list[torch.Tensor] | None]:
        """Return pictures (1, N, 3, H, W) and [points] of a frame; None for a sensor that the model lacks.

        They are those of the frame, not what the checks return, which the runner takes too.
        """
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
        """Return part of the model -> function of its inputs and output, which returns tensors by name."""
        hooks: dict[torch.nn.Module, Watch] = {}
        if 'lidar' in self.model.sensors:
            hooks[self.model.encoders['lidar'].encoder] = lambda _, output: dict(bev=output)
        if 'camera' in self.model.sensors and transform_of(self.model).uses_points:
            hooks[transform_of(self.model).dtransform] = lambda inputs, _: {DEPTH: inputs[0]}
        return hooks

    def of_rig(self, rig: Rig) -> dict[str, torch.Tensor]:
        """Return the outputs of the rig's graph by name: `cells` and `TABLES`.

        `cells` is that of `ViewTransform.cells` for the one sample, (N, depth bins, rows, columns). `rig` is
        that of a batch of one.
        """
        cells = transform_of(self.model).cells(rig)[0]
        return dict(cells=cells) | dict(zip(TABLES, transform_of(self.model).pool_tables(cells), strict=True))

    def other_tensors(self, predictions: dict[str, torch.Tensor], cloud: Any) -> dict[str, torch.Tensor]:
        """Return further tensors by name that a proof compares; here there are none.

        Args:
            predictions: outputs of the head, see `BEVFusion.predictions`.
            cloud: a list with the points (P, V) of the frame, or None.
        """
        return {}


def head_values(outputs: Mapping[str, np.ndarray], classes: int) -> list[torch.Tensor]:
    """Return scores (1, K, Q), centres in cells, heights, log sizes, rotations, velocities for the box coder.

    All but the scores are (1, channels, Q); K is `classes`, their number. Heights are z of the middle of a
    box, in m, sizes in m, velocities in m/s; of the node's outputs, all scores but that of its label are 0.
    The outputs, by name, are those of CUDA-BEVFusion's head, or of Autoware's node. The node's boxes have
    length, width and a heading from x counter-clockwise, those of the coder width, length and a heading from
    -y clockwise.
    """
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in outputs.items()}
    if 'bbox_pred' not in tensors:
        return [tensors[name] for name in ('score', 'reg', 'height', 'dim', 'rot', 'vel')]
    x, y, z, length, width, height, sine, cosine, *velocity = tensors['bbox_pred']
    scores = torch.nn.functional.one_hot(tensors['label_pred'], classes).T * tensors['score']
    rows = [[x, y], [z], [width, length, height], [-cosine, -sine], velocity]
    return [scores[None], *(torch.stack(row)[None] for row in rows)]


class CudaReference(BEVFusionReference):
    """The detector with the LiDAR kernels rounded to float16, and the tensors between all of its parts.

    The files of CUDA-BEVFusion's contract hold these kernels in float16. With rounded kernels everything
    behind them is compared with the tolerances of float32; the LiDAR's map with the checkpoint's own kernels
    is compared, too.

    Attributes:
        exact: sparse encoder with the checkpoint's own kernels.
        output: name of the output of the sparse encoder's file.
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
            transform.dtransform: lambda inputs, _: {DEPTH: inputs[0]},
            transform.depthnet: lifted,
            transform.downsample: lambda inputs, output: {POOLED: inputs[0], 'feat_out': output},
            # one map for both sparse files, which differ in the order of the voxels' coordinates
            self.model.encoders['lidar'].encoder: lambda _, bev: {self.output: bev, OTHER_ORDER: bev},
            self.model.heads['object']: lambda inputs, _: dict(middle=inputs[0]),
        }

    def of_rig(self, rig: Rig) -> dict[str, torch.Tensor]:
        """Return `cells` alone, which the runtime computes; the contract has no graph of the rig."""
        return dict(cells=transform_of(self.model).cells(rig)[0])

    def other_tensors(self, predictions: dict[str, torch.Tensor], cloud: Any) -> dict[str, torch.Tensor]:
        features, coordinates = self.model.encoders['lidar'].voxelize(cloud)
        scores = self.model.heads['object'].scores(predictions)
        values = dict(predictions, score=scores, reg=predictions['center'])
        unrounded = {UNROUNDED: self.exact(features, coordinates, len(cloud))}
        return {**{name: values[name] for name in HEAD}, **unrounded}


def detections(boxes_of_head: dict[str, torch.Tensor]) -> Detections3D:
    """Return the result of a head's `get_bboxes` for one sample, best first, in mmdet3d 1.0's columns.

    `boxes_of_head` are the boxes, scores and labels of that result by name.

    This does not call the runtime's `in_lidar_columns`, which would then be compared with itself: the heading
    is taken from its sine and cosine.
    """
    order = boxes_of_head['scores'].argsort(descending=True, stable=True)
    boxes, scores, labels = (
        boxes_of_head[name][order].cpu().numpy() for name in ('bboxes', 'scores', 'labels')
    )
    x_y_z, (width, length, height), yaw = boxes[:, :3], boxes[:, 3:6].T, boxes[:, 6]
    heading = np.arctan2(-np.cos(yaw), -np.sin(yaw))
    columns = np.stack([length, width, height, heading], axis=1)
    return Detections3D(np.concatenate([x_y_z, columns, boxes[:, 7:]], axis=1), scores, labels)
