"""BEVDet, BEVDet4D and BEVDepth4D at test time: head and detectors.

Source: HuangJunJie2017/BEVDet f71858d, detectors/bevdet.py, dense_heads/centerpoint_head.py:670-856.

Glossary: B samples, N cameras, F frames (the present one and those before), C channels, H, W pictures, Y, X
rows and columns of the bird's-eye view, n boxes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models import DETECTORS, HEADS
from mmdet3d.core import bbox3d2result, circle_nms, xywhr2xyxyr
from mmdet3d.core.post_processing import nms_bev
from mmdet3d.models import builder
from mmdet3d.models.dense_heads.centerpoint_head import CenterHead
from torch import Tensor
from torch.nn import functional

from mm2onnx_driving.layers.lift_splat import OWN, LiftSplatDetector, in_key_ego, own_part
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# ---- CenterPoint's head; sizes of boxes are scaled by class before rotated NMS


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


# ---- detectors


@registered_if_named(DETECTORS, builds=tuple(OWN.values()))
class BEVDet(LiftSplatDetector):
    """The detector with a head of boxes."""

    def __init__(self, pts_bbox_head: Mapping[str, Any], **config: Any) -> None:
        super().__init__(pts_bbox_head=own_part(pts_bbox_head), **config)

    def results_of(self, maps: Sequence[Tensor], img_metas: Sequence[Mapping[str, Any]]) -> list[dict]:
        """Return a list of one dict, 'pts_bbox' -> boxes, scores and labels."""
        outputs = self.pts_bbox_head(maps)
        for name, tensor in outputs[0][0].items():
            tap(name, tensor)
        samples = self.pts_bbox_head.get_bboxes(outputs, img_metas)
        return [{'pts_bbox': bbox3d2result(*boxes_scores_labels)} for boxes_scores_labels in samples]


@registered_if_named(DETECTORS, builds=tuple(OWN.values()))
class BEVDet4D(BEVDet):
    """BEVDet that also sees views of frames before.

    Without `sequential` pictures are camera-major (camera 0: frames 0 to F - 1, newest first), but matrices
    are frame-major (frame 0: cameras 0 to N - 1).

    Args:
        pre_process: config of a network of each frame's view, or None.
        align_after_view_transfromation: lift all frames with the poses of the present one, and warp their
            views; otherwise lift with their own poses.
        num_adj: F - 1.
    """

    def __init__(
        self,
        pre_process: Mapping[str, Any] | None = None,
        align_after_view_transfromation: bool = False,
        num_adj: int = 1,
        with_prev: bool = True,
        **config: Any,
    ) -> None:
        super().__init__(**config)
        self.pre_process = pre_process is not None
        if pre_process is not None:
            self.pre_process_net = builder.build_backbone(pre_process)
        self.align_after_view_transfromation, self.num_frame = align_after_view_transfromation, num_adj + 1

    def bev_map(self, images: Tensor, *matrices: Tensor) -> tuple[Tensor, Tensor]:
        view, depth = super().bev_map(images, *matrices)
        return tap('bev_pre', self.pre_process_net(view)[0] if self.pre_process else view), depth

    def extract_img_feat(
        self,
        img: Sequence[Any],
        img_metas: Any = None,
        sequential: bool = False,
        feat_prev: Tensor | None = None,
        **unused: Any,
    ) -> tuple[list[Tensor], Tensor]:
        """Return the encoded view and depth of the present frame.

        With `sequential`, `img` are pictures (1, N, 3, H, W), the present sensor2keyego (F - 1, N, 4, 4) and
        ego2global, intrins, sensor2keyego of the frames before (F - 1, N, 4, 4) in the present key ego frame,
        their ego2global, post_rots, post_trans and bda (F - 1, 3, 3); `feat_prev` (F - 1, C, Y, X) are
        their views, not warped.
        """
        if not sequential:
            return self.all_frames(img)
        images, keyego, ego2global, intrins, before, _, *post, bda = img
        matrices = intrins, *post, bda[:1]
        vectors = self.img_view_transformer.get_mlp_input(keyego[:1], ego2global[:1], *matrices)
        view, depth = self.bev_map(images, keyego[:1], ego2global[:1], *matrices, vectors)
        warped = self.shift_feature(feat_prev, [keyego, before])
        return [self.bev_encoder(torch.cat([view, warped.flatten(0, 1)[None]], 1))], depth

    def all_frames(self, img: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        images = img[0].unflatten(1, (-1, self.num_frame)).transpose(1, 2)  # (B, F, N, 3, H, W)
        sensor2ego, ego2global, *matrices = (value.unflatten(1, (self.num_frame, -1)) for value in img[1:6])
        keyego, bda = in_key_ego(ego2global[:, :1, :1], ego2global, sensor2ego), img[6]
        views, depths = [], []
        for index in range(self.num_frame):
            own = [matrix[:, index] for matrix in matrices]
            vectors = self.img_view_transformer.get_mlp_input(keyego[:, 0], ego2global[:, 0], *own, bda)
            lifted_by = 0 if self.align_after_view_transfromation else index
            place = keyego[:, lifted_by], ego2global[:, lifted_by]
            view, depth = self.bev_map(images[:, index], *place, *own, bda, vectors)
            if index and self.align_after_view_transfromation:
                view = self.shift_feature(view, [keyego[:, 0], keyego[:, index]])
            views.append(view)
            depths.append(depth)
        return [self.bev_encoder(torch.cat(views, 1))], depths[0]

    def shift_feature(self, views: Tensor, sensor2keyegos: Sequence[Tensor], *unused: Any) -> Tensor:
        """Return views (B, C, Y, X) of other frames as the present one sees them, 0 from outside.

        `sensor2keyegos` are those of the present and of the other frames, (B, N, 4, 4); the motion is that
        of the first camera.
        """
        present, other = (poses[:, 0].double() for poses in sensor2keyegos)
        transformer, (rows, columns) = self.img_view_transformer, views.shape[2:]
        low, step = transformer.grid_lower_bound[:2].to(present), transformer.grid_interval[:2].to(present)
        motion = present @ torch.inverse(other)
        grid = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing='xy'), -1)
        places = grid.to(present) * step + low
        places = places @ motion[:, None, :2, :2].transpose(-1, -2) + motion[:, None, None, :2, 3]
        size = places.new_tensor([columns - 1, rows - 1])
        shares = (places - low) / step / size * 2 - 1
        return tap('aligned', functional.grid_sample(views, shares.to(views.dtype), align_corners=True))


@registered_if_named(DETECTORS, builds=tuple(OWN.values()))
class BEVDepth4D(BEVDet4D):
    """BEVDet4D with a depth network that training supervises; the same at test time."""
