"""The detectors BEVDet, BEVDet4D and BEVDepth4D at test time.

Source: HuangJunJie2017/BEVDet f71858d, detectors/bevdet.py.

Glossary: B samples, N cameras, F frames (the present one and those before), C channels, H, W pictures, Y, X
rows and columns of the bird's-eye view.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models import DETECTORS
from mmdet3d.core import bbox3d2result
from mmdet3d.models import builder
from torch import Tensor
from torch.nn import functional

from mm2onnx_driving.layers.lift_splat.detector import OWN, LiftSplatDetector, in_key_ego, own_part
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


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
