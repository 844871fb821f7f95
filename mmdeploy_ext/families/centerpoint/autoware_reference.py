"""CenterPoint in PyTorch beside Autoware's node: mmdet3d's network and coder, then the node's selection."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmcv.ops import box_iou_rotated
from mmdet3d.core import circle_nms
from mmdet3d.core.bbox.coders.centerpoint_bbox_coders import CenterPointBBoxCoder

from mmdeploy_ext.consumers.autoware.boxes import OUTPUTS
from mmdeploy_ext.consumers.autoware.centerpoint import PILLARS, SPATIAL
from mmdeploy_ext.families.centerpoint.reference import Reference
from mmdeploy_ext.families.parts.parts import watching
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import StepResult, Sweep

FAR_M = 1e6
CIRCLE_M2, OVERLAP, OVERLAP_SEARCH_M = 0.25, 0.1, 10.0
"""The node's defaults: squared distance, IoU from above, metres.

Source: autoware_universe 4dff8e23, centerpoint_common.param.yaml.
"""


class NodeReference(Reference):
    """The unpatched detector and, of its raw outputs, mmdet3d's own boxes of every cell.

    Which of them the node keeps is its own rule. Thresholds are read from the head here, and both
    suppressions are computed by mmdet3d's and mmcv's operators, so that a fault of the manifest or of the
    node's port is not on both sides; what boxes are (voxels, decoration, network, decoding, convention) is
    mmdet3d's.
    """

    def step(self, sweep: Sweep) -> StepResult:
        """Run one sweep; raises what `Reference.step` raises."""
        with watching({self.parts.voxel_encoder: _pillars}) as kept:
            raw = super().step(sweep).outputs
        outputs = {name: raw[f'{name}_0'] for name in OUTPUTS}
        found = self._boxes({name: torch.from_numpy(value) for name, value in outputs.items()})
        outputs['dim'] = outputs['dim'][:, [1, 0, 2]]
        outputs['rot'] = -outputs['rot'][:, ::-1]
        return StepResult({PILLARS: kept[PILLARS], SPATIAL: raw['bev'], **outputs}, found)

    def _boxes(self, raw: Mapping[str, torch.Tensor]) -> Detections3D:
        """Return what the node would publish of mmdet3d's boxes."""
        heat = raw['heatmap'].sigmoid()
        heat = heat * (heat == heat.amax(1, keepdim=True))  # the node looks at the best class of a cell alone
        found = [self._decoded(heat[:, index : index + 1], raw) for index in range(heat.shape[1])]
        boxes, scores = (np.concatenate([one[name] for one in found]) for name in ('bboxes', 'scores'))
        labels = np.repeat(np.arange(len(found)), [len(one['scores']) for one in found])
        least = np.float32(self.parts.head.bbox_coder.score_threshold or 0.0)
        objects = Detections3D(boxes, scores, labels)[(scores >= least) & (scores > 0)].best_first()
        places = np.concatenate([objects.boxes[:, :2], objects.scores[:, None]], axis=1).astype(np.float32)
        objects = objects[np.array(circle_nms(places, CIRCLE_M2, len(places)), np.int64)]
        objects = objects[self._without_overlaps(objects)]
        objects.boxes[:, 2] -= objects.boxes[:, 5] / 2  # z at the bottom
        return objects

    def _without_overlaps(self, objects: Detections3D) -> np.ndarray:
        """Return (n,) bool: no better object of those that it is compared with overlaps it too much."""
        flat = objects.boxes[:, [0, 1, 3, 4, 6]]
        rows = torch.from_numpy(flat.astype(np.float32))
        overlaps = box_iou_rotated(rows, rows).numpy()
        near = np.linalg.norm(flat[:, None, :2] - flat[None, :, :2], axis=-1) <= OVERLAP_SEARCH_M
        walks = np.array([str(name).upper() == 'PEDESTRIAN' for name in self.model.CLASSES])[objects.labels]
        compared = (objects.labels[:, None] == objects.labels) | ~(walks[:, None] | walks)
        better = np.tri(len(flat), k=-1, dtype=bool)
        return ~((overlaps > OVERLAP) & near & compared & better).any(axis=1)

    def _decoded(self, heat: torch.Tensor, raw: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Return mmdet3d's boxes of all cells for one class: no number and no range cuts them off."""
        own: Any = self.parts.head.bbox_coder
        coder = CenterPointBBoxCoder(
            own.pc_range,
            own.out_size_factor,
            own.voxel_size,
            post_center_range=[-FAR_M] * 3 + [FAR_M] * 3,
            max_num=heat[0, 0].numel(),
            code_size=own.code_size,
        )
        turn, sizes = (raw['rot'][:, :1], raw['rot'][:, 1:]), raw['dim'].exp()
        (found,) = coder.decode(heat, *turn, raw['height'], sizes, raw['vel'], reg=raw['reg'], task_id=0)
        return {name: found[name].numpy() for name in ('bboxes', 'scores')}


def _pillars(given: tuple[torch.Tensor, ...], rows: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the encoder's rows (n, 1, 32), in the order of y, then x."""
    places = given[2].cpu().numpy()
    return {PILLARS: rows.cpu().numpy()[np.lexsort((places[:, 3], places[:, 2])), None]}
