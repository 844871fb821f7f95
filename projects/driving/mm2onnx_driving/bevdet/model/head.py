"""CenterPoint's head as BEVDet suppresses its boxes: sizes are scaled by class before rotated NMS.

Source: HuangJunJie2017/BEVDet f71858d, dense_heads/centerpoint_head.py:670-856.

Glossary: B samples, Y, X rows and columns of the bird's-eye view, n boxes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models import HEADS
from mmdet3d.core import circle_nms, xywhr2xyxyr
from mmdet3d.core.post_processing import nms_bev
from mmdet3d.models.dense_heads.centerpoint_head import CenterHead
from torch import Tensor

from mmdeploy_ext.upstream.models.catalogue import registered_if_named


def of_task(setting: Any, task: int, default: Any = None) -> Any:
    """Return the setting of a task, of one for all tasks or a list of one each."""
    setting = default if setting is None else setting
    return setting[task] if isinstance(setting, list | tuple) else setting


@registered_if_named(HEADS)
class BEVDetCenterHead(CenterHead):
    """mmdet3d's `CenterHead` with Scale-NMS; `BEVDet` builds it for a config's `CenterHead`."""

    @torch.no_grad()
    def get_bboxes(
        self,
        preds_dicts: Sequence[Sequence[Mapping[str, Tensor]]],
        img_metas: Sequence[Mapping],
        **unused: Any,
    ) -> list[list[Any]]:
        """Return boxes, scores (n,) and labels (n,) of each sample.

        Boxes are of the metas' `box_type_3d`: x, y, z of the bottom, length, width, height, m, yaw from x
        counter-clockwise, rad, and the velocity x, y, m/s, in the key ego frame.

        Args:
            preds_dicts: per task a list of one dict, output -> map (B, channels, Y, X).
            img_metas: one per sample.
            **unused: further arguments of mmdet3d's callers.
        """
        samples: list[list[list[Tensor]]] = [[] for _ in img_metas]
        first_label = 0
        for task, ((maps,), count) in enumerate(zip(preds_dicts, self.num_classes, strict=True)):
            sizes = maps['dim'].exp() if self.norm_bbox else maps['dim']
            turns = maps['rot'][:, :1], maps['rot'][:, 1:]
            decoded = self.bbox_coder.decode(
                maps['heatmap'].sigmoid(), *turns, maps['height'], sizes, maps.get('vel'), reg=maps['reg']
            )
            for sample, found in zip(samples, decoded, strict=True):
                boxes, scores, labels = found['bboxes'], found['scores'], found['labels'].long()
                rows = self.kept(task, boxes, scores, labels)
                sample.append([boxes[rows], scores[rows], labels[rows] + first_label])
            first_label += count
        results = []
        for sample, meta in zip(samples, img_metas, strict=True):
            boxes, scores, labels = (torch.cat(column) for column in zip(*sample, strict=True))
            boxes[:, 2] -= boxes[:, 5] * 0.5
            results.append([meta['box_type_3d'](boxes, boxes.shape[1]), scores, labels])
        return results

    def kept(self, task: int, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the rows of a task's boxes (n, 9) that its NMS keeps, best first."""
        test = self.test_cfg
        if not len(boxes):
            return labels
        if of_task(test['nms_type'], task) == 'circle':
            places = torch.cat([boxes[:, :2], scores[:, None]], 1).cpu().numpy()
            rows = circle_nms(places, test['min_radius'][task], test['post_max_size'])
            return torch.as_tensor(rows, dtype=torch.long, device=boxes.device)
        present = (scores >= test.get('score_threshold', 0.0)).nonzero()[:, 0]
        factors = of_task(test.get('nms_rescale_factor'), task, 1.0)
        sizes = boxes[:, 3:5]
        if isinstance(factors, list | tuple):
            sizes = sizes * sizes.new_tensor(factors)[labels][:, None]
        else:
            sizes = sizes * factors
        above = xywhr2xyxyr(torch.cat([boxes[:, :2], sizes, boxes[:, 6:7]], 1)[present])
        threshold = of_task(test['nms_thr'], task)
        return present[
            nms_bev(above, scores[present], threshold, test['pre_max_size'], test['post_max_size'])
        ]
