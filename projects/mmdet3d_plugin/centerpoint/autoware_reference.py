"""CenterPoint in PyTorch beside Autoware's node: mmdet3d's network and coder, then the node's selection."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox.coders.centerpoint_bbox_coders import CenterPointBBoxCoder

from mmdeploy_ext.runtime.autoware.boxes import OUTPUTS, Objects, passing, suppressed
from mmdeploy_ext.runtime.autoware.centerpoint import PILLARS, SPATIAL
from mmdeploy_ext.runtime.autoware.settings import Settings
from mmdeploy_ext.runtime.frames import StepResult, Sweep
from projects.mmdet3d_plugin.centerpoint.autoware import parameters
from projects.mmdet3d_plugin.centerpoint.reference import Reference
from projects.mmdet3d_plugin.common.parts import watching

FAR_M = 1e6


class NodeReference(Reference):
    """The unpatched detector and, of its raw outputs, mmdet3d's own boxes of every cell.

    Which of them the node keeps (thresholds of its manifest, two suppressions) is its own rule and applied as
    the node has it; what boxes are (voxels, decoration, network, decoding, convention) is mmdet3d's.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.settings = Settings.of(parameters(model, model.CLASSES))

    def step(self, sweep: Sweep) -> StepResult:
        """Run one sweep; raises what `Reference.step` raises."""
        with watching({self.parts.voxel_encoder: _pillars}) as kept:
            raw = super().step(sweep).outputs
        outputs = {name: raw[f'{name}_0'] for name in OUTPUTS}
        found = self._boxes({name: torch.from_numpy(value) for name, value in outputs.items()})
        outputs['dim'] = outputs['dim'][:, [1, 0, 2]]
        outputs['rot'] = -outputs['rot'][:, ::-1]
        return StepResult({PILLARS: kept[PILLARS], SPATIAL: raw['bev'], **outputs}, found.detections())

    def _boxes(self, raw: Mapping[str, torch.Tensor]) -> Objects:
        """Return what the node would publish of mmdet3d's boxes."""
        heat = raw['heatmap'].sigmoid()
        heat = heat * (heat == heat.amax(1, keepdim=True))  # the node looks at the best class of a cell alone
        found = [self._decoded(heat[:, index : index + 1], raw) for index in range(heat.shape[1])]
        boxes, scores = (np.concatenate([one[name] for one in found]) for name in ('bboxes', 'scores'))
        labels = np.repeat(np.arange(len(found)), [len(one['scores']) for one in found])
        cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
        along, across = cos * boxes[:, 7] + sin * boxes[:, 8], cos * boxes[:, 8] - sin * boxes[:, 7]
        twists = np.stack([along, across], axis=1)
        objects = Objects(boxes[:, :3], boxes[:, 3:6], boxes[:, 6], twists, scores, labels)
        good = passing(boxes[:, :2], scores, labels, self.settings)
        return suppressed(objects[good].best_first(), self.settings)

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
