"""BEVFusion in PyTorch as a stepper: the unpatched detector, spconv on one thread.

Glossary: N cameras, H, W pictures of the network, P points, V values per point, K classes, Q queries.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import Box3DMode, LiDARInstance3DBoxes

from mm2onnx_driving.bevfusion.graphs import TABLES, transform_of
from mm2onnx_driving.bevfusion.runtime import check_images
from mm2onnx_driving.bevfusion.view_transform import Rig, read_rig
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.last_test import LastTest
from mmdeploy_ext.families.common.lidar_parts import Hook, collected
from mmdeploy_ext.families.common.samples import detections
from mmdeploy_ext.families.sequence import not_compared
from mmdeploy_ext.families.synthetic.moments import fused_frames, plain_moment
from mmdeploy_ext.runtime.calibration import MATRICES, check_calibration
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import FusedFrame, StepResult, Sweep
from mmdeploy_ext.runtime.points import check_in_range, check_points
from mmdeploy_ext.spec.preparation import FusionRule
from mmdeploy_ext.upstream.compat import single_thread

OUT_OF_RANGE_M = 1e3
"""Added to the height of boxes that a coder must drop, metres."""
NAMES = dict(bboxes='boxes', scores='scores', labels='labels')
"""Entry of a head's boxes -> output of the files."""


class BEVFusionReference:
    """The detector's own test path; hooks read the tensors between its parts."""

    state = None  # a stepper's memory between frames; this one has none

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.test = model, LastTest(model)
        self.device = next(model.parameters()).device
        self._unread: set[str] = set()

    @property
    def notes(self) -> list[str]:
        return not_compared(self._unread)

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
        meta = dict(
            frame.calibration,
            box_type_3d=LiDARInstance3DBoxes,
            box_mode_3d=Box3DMode.LIDAR,
            sample_idx=frame.name,
            filename=list(frame.image_files),
        )
        data = dict(
            img_metas=[[meta]],
            points=None if cloud is None else [cloud],
            img=None if images is None else [images],
        )
        of_head: dict[torch.nn.Module, Hook] = {
            self.model.heads['object']: lambda _, output: dict(predictions=output)
        }
        with torch.no_grad(), single_thread():
            with collected(of_head) as watched, collected(self.hooks()) as tensors:
                (result,) = self.test.run(return_loss=False, rescale=True, **data)
            if images is not None:
                tensors |= self.of_rig(read_rig([frame.calibration], self.device, images.shape[1]))
            tensors |= self.other_tensors(watched['predictions'], cloud)
        outputs = {name: value.cpu().numpy() for name, value in tensors.items()}
        inputs = {name: frame.calibration[name] for name in MATRICES if name in frame.calibration}
        if frame.images is not None:
            inputs['images'] = frame.images
        for name, array in dict(inputs, points=frame.points, **outputs).items():
            tap(name, torch.from_numpy(np.ascontiguousarray(array)))  # for `collect_taps` around this step
        boxes = detections(result['pts_bbox'])
        self._unread |= self.test.unread()
        return StepResult(outputs, boxes)

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Return the boxes of the last frame, best first, by its test path with outputs of the files."""
        with single_thread():
            (result,) = self.test.again(self.of_files(outputs))
        return detections(result['pts_bbox'])

    def of_files(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return what takes the place of a part of the model, see `substituted`."""
        head = self.model.heads['object']
        if not hasattr(head, 'prediction_heads'):  # maps of all cells, of which the files give the best
            return {'heads.object.get_bboxes': [head.suppress(rows_of(outputs))]}
        values = values_of_boxes(outputs, head.bbox_coder, head.num_classes)
        return {'heads.object.forward': predictions_of(values)}

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

    def hooks(self) -> dict[torch.nn.Module, Hook]:
        hooks: dict[torch.nn.Module, Hook] = {}
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


def rows_of(outputs: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the boxes of the files that the coder did not drop, as a head's `suppress` takes them."""
    rows = outputs['labels'] >= 0
    return {name: torch.from_numpy(outputs[output][rows]) for name, output in NAMES.items()}


def values_of_boxes(outputs: Mapping[str, np.ndarray], coder: Any, classes: int) -> dict[str, np.ndarray]:
    """Return head outputs, each (1, columns, Q), that decode to the graph's boxes, scores and labels."""
    boxes, scores = outputs['boxes'].astype(np.float64), outputs['scores']
    dropped, labels = outputs['labels'] < 0, outputs['labels'].clip(min=0)
    step, low = (np.array(values[:2]) for values in (coder.voxel_size, coder.pc_range))
    centres = (boxes[:, :2] - low) / (step * coder.out_size_factor)
    middle = boxes[:, 2] + boxes[:, 5] / 2 + np.where(dropped, OUT_OF_RANGE_M, 0.0)
    sizes, sine, cosine = np.log(boxes[:, 3:6]), np.sin(boxes[:, 6]), np.cos(boxes[:, 6])
    values = dict(rot=[sine, cosine], dim=sizes.T, reg=centres.T, height=[middle], vel=boxes[:, 7:].T)
    score = np.eye(classes, dtype=np.float32)[labels].T * scores
    return dict(score=score[None], **{name: np.float32(rows)[None] for name, rows in values.items()})


def predictions_of(values: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return what `TransFusionHead.forward` does, of `score` (1, K, Q), 0 of other classes, and raw values.

    `reg` are centres in cells; see `values_of_boxes`.
    """
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in values.items()}
    score, centres = tensors.pop('score'), tensors.pop('reg')
    return dict(
        tensors,
        center=centres,
        heatmap=score.double().logit(),  # its sigmoid is the score again
        query_heatmap_score=torch.ones_like(score),
        query_labels=score.argmax(1),
    )
