"""CenterPoint in PyTorch as a stepper: mmdet3d's detector, and its boxes as Autoware's node selects them.

Glossary: C channels, H, W cells of the bird's-eye view, P pillars, n objects.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmcv.ops import box_iou_rotated
from mmdet3d.core import circle_nms
from mmdet3d.core.bbox.coders.centerpoint_bbox_coders import CenterPointBBoxCoder

from mmdeploy_ext.consumers.autoware.boxes import OUTPUTS
from mmdeploy_ext.consumers.autoware.centerpoint import PILLARS, SPATIAL
from mmdeploy_ext.families.centerpoint.graphs import facts_of, flat_outputs
from mmdeploy_ext.families.parts.lidar_parts import watching
from mmdeploy_ext.families.parts.lidar_reference import LidarReference
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import StepResult, Sweep

FAR_M = 1e6
"""Limit of a range that no box reaches, metres."""
CIRCLE_M2, OVERLAP, OVERLAP_SEARCH_M = 0.25, 0.1, 10.0
"""The node's default limits: squared distance in m^2 up to which the worse of two objects is dropped; IoU in
the bird's-eye view above which it is; distance in metres up to which the IoU is looked at.

Source: autoware_universe 4dff8e23, centerpoint_common.param.yaml.
"""


class CenterPointReference(LidarReference):
    """The unpatched detector with the outputs of `CenterHead`."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model, facts_of(model).output_names, flat_outputs)

    def head_outputs(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        """Return the outputs of `CenterHead` as the arguments of its `get_bboxes` before the metas.

        That is one argument, the tasks with one level each. `tensors` are outputs (1, C, H, W) by names such
        as 'reg_0', those of task 0 first, as `flat_outputs` has them.
        """
        tasks: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            output, task = name.rsplit('_', 1)
            tasks.setdefault(task, {})[output] = tensor
        return (tuple([outputs] for outputs in tasks.values()),)


class NodeReference(CenterPointReference):
    """The unpatched detector, whose head has one task, with the boxes that Autoware's node selects.

    mmdet3d decodes a box in every cell; the node's thresholds and suppressions select among them. The
    threshold of scores is read from the head, and both suppressions are computed by mmdet3d's and mmcv's
    operators, so that a fault of the manifest, or of our port of the node, is not in the reference as well.
    Voxels, decoration, network, decoding and convention of the boxes are mmdet3d's.
    """

    def step(self, sweep: Sweep) -> StepResult:
        """Run one sweep; raises what `LidarReference.step` raises.

        The outputs are `PILLARS`, features (P, 1, C) of the pillars by ascending y, then x; `SPATIAL`, the
        map (1, C, H, W) that they are scattered to; and `CenterHead`'s `OUTPUTS` as the node takes them, with
        log width before log length and the yaw of mmdet3d 0.x.
        """

        def pillar_features(inputs: tuple[torch.Tensor, ...], rows: torch.Tensor) -> dict[str, np.ndarray]:
            cells = inputs[2].cpu().numpy()  # sample, z, y, x
            return {PILLARS: rows.cpu().numpy()[np.lexsort((cells[:, 3], cells[:, 2])), None]}

        with watching({self.parts.voxel_encoder: pillar_features}) as pillars:
            raw = super().step(sweep).outputs
        outputs = {name: raw[f'{name}_0'] for name in OUTPUTS}
        objects = self._objects({name: torch.from_numpy(value) for name, value in outputs.items()})
        outputs['dim'] = outputs['dim'][:, [1, 0, 2]]
        outputs['rot'] = -outputs['rot'][:, ::-1]
        return StepResult({PILLARS: pillars[PILLARS], SPATIAL: raw['bev'], **outputs}, objects)

    def _objects(self, raw: Mapping[str, torch.Tensor]) -> Detections3D:
        """Return the boxes that the node publishes, in mmdet3d's convention.

        `raw` are the head's outputs by names such as 'heatmap', in mmdet3d's convention.
        """
        heat = raw['heatmap'].sigmoid()
        heat = heat * (heat == heat.amax(1, keepdim=True))  # the node looks at the best class of a cell alone
        classes = [self._decoded(heat[:, index : index + 1], raw) for index in range(heat.shape[1])]
        boxes, scores = (
            np.concatenate([decoded[name] for decoded in classes]) for name in ('bboxes', 'scores')
        )
        labels = np.repeat(np.arange(len(classes)), [len(decoded['scores']) for decoded in classes])
        threshold = np.float32(self.parts.head.bbox_coder.score_threshold or 0.0)
        objects = Detections3D(boxes, scores, labels)[(scores >= threshold) & (scores > 0)].best_first()
        centres = np.concatenate([objects.boxes[:, :2], objects.scores[:, None]], axis=1).astype(np.float32)
        objects = objects[np.array(circle_nms(centres, CIRCLE_M2, len(centres)), np.int64)]
        objects = objects[self._without_overlaps(objects)]
        objects.boxes[:, 2] -= objects.boxes[:, 5] / 2  # z at the bottom
        return objects

    def _without_overlaps(self, objects: Detections3D) -> np.ndarray:
        """Return (n,) bool: True for objects that no better object which they are compared with overlaps."""
        boxes_bev = objects.boxes[:, [0, 1, 3, 4, 6]]
        rows = torch.from_numpy(boxes_bev.astype(np.float32))
        overlaps = box_iou_rotated(rows, rows).numpy()
        distances = np.linalg.norm(boxes_bev[:, None, :2] - boxes_bev[None, :, :2], axis=-1)
        walks = np.array([str(name).upper() == 'PEDESTRIAN' for name in self.model.CLASSES])[objects.labels]
        compared = (objects.labels[:, None] == objects.labels) | ~(walks[:, None] | walks)
        better = np.tri(len(boxes_bev), k=-1, dtype=bool)
        overlapped = (overlaps > OVERLAP) & (distances <= OVERLAP_SEARCH_M) & compared & better
        return ~overlapped.any(axis=1)

    def _decoded(self, heat: torch.Tensor, raw: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Return mmdet3d's boxes of all cells for one class; no number and no range cuts any off."""
        head_coder: Any = self.parts.head.bbox_coder
        coder = CenterPointBBoxCoder(
            head_coder.pc_range,
            head_coder.out_size_factor,
            head_coder.voxel_size,
            post_center_range=[-FAR_M] * 3 + [FAR_M] * 3,
            max_num=heat[0, 0].numel(),
            code_size=head_coder.code_size,
        )
        sine, cosine, sizes = raw['rot'][:, :1], raw['rot'][:, 1:], raw['dim'].exp()
        (boxes,) = coder.decode(
            heat, sine, cosine, raw['height'], sizes, raw['vel'], reg=raw['reg'], task_id=0
        )
        return {name: boxes[name].numpy() for name in ('bboxes', 'scores')}
