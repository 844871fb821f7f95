"""Detectors of several cameras at test time: pictures to feature maps, maps to boxes.

Source: fundamentalvision/BEVFormer 66b65f3, `detectors/bevformer.py`; megvii-research/PETR f7525f9,
`detectors/petr3d.py`.
Glossary: N cameras, C channels, h, w feature map, H, W pictures in pixels.
"""

from typing import Any

import numpy as np
from mmdet3d.core import bbox3d2result
from mmdet3d.models.detectors.mvx_two_stage import MVXTwoStageDetector
from torch import Tensor

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.base.taps import tap


class CameraDetector(MVXTwoStageDetector):
    """Backbone, neck and head of cameras."""

    def __init__(self, use_grid_mask: bool = False, **modules: Any) -> None:
        super().__init__(**modules)

    def extract_img_feat(self, img: Tensor) -> list[Tensor]:
        """Return feature maps (1, N, C, h, w) of each level, of pictures (1, N, 3, H, W)."""
        maps = self.img_backbone(img.flatten(0, 1))
        maps = list(maps.values()) if isinstance(maps, dict) else maps
        if self.with_img_neck:
            maps = self.img_neck(maps)
        return [level.reshape(*img.shape[:2], *level.shape[1:]) for level in maps]

    def forward(self, return_loss: bool = True, **data: Any) -> Any:
        """Test, as mmcv's runners call it; NotImplementedError for training."""
        if return_loss:
            name = type(self).__name__
            raise NotImplementedError(f"mm2onnx's {name} cannot train; use its own repository")
        return self.forward_test(**data)

    def forward_test(
        self, img_metas: list, img: list[Tensor], rescale: bool = False, **data: Any
    ) -> list[dict]:
        """Return one dict, 'pts_bbox' -> `boxes_3d` (m, LiDAR frame), `scores_3d` and `labels_3d` on the CPU.

        `img_metas` are [one augmentation][one sample], `img` [one augmentation] of (1, N, 3, H, W).
        """
        if not isinstance(img_metas, list) or len(img_metas) != 1:
            raise DataError(
                f'{type(self).__name__} supports one augmentation at test time: img_metas must be a '
                'list of one list'
            )
        outputs = self.run_frame(img_metas[0], tap('img', img[0]))
        for name, tensor in outputs.items():
            tap(name, tensor)
        samples = self.pts_bbox_head.get_bboxes(outputs, img_metas[0])
        return [{'pts_bbox': self.result_of(sample)} for sample in samples]

    def result_of(self, sample: Any) -> dict[str, Any]:
        """Return a result on the CPU of what the head's `get_bboxes` gives for a sample."""
        return bbox3d2result(*sample)

    def run_frame(self, img_metas: list[dict], img: Tensor) -> dict[str, Tensor]:
        """Return the head's outputs of one frame, pictures (1, N, 3, H, W)."""
        return self.pts_bbox_head(self.extract_img_feat(img), img_metas)


# ---- a detector that keeps its bird's-eye view: frames to scenes


class BevDetector(CameraDetector):
    """Camera-only detector that runs a scene frame by frame."""

    def __init__(self, video_test_mode: bool = False, **modules: Any) -> None:
        super().__init__(**modules)
        self.video_test_mode = video_test_mode
        self.reset()

    def reset(self) -> None:
        self.prev_frame_info: dict[str, Any] = dict(
            prev_bev=None, scene_token=None, prev_pos=np.zeros(3), prev_angle=0.0
        )

    def run_frame(self, img_metas: list[dict], img: Tensor) -> dict[str, Tensor]:
        meta, last = img_metas[0], self.prev_frame_info
        if meta['scene_token'] != last['scene_token'] or not self.video_test_mode:
            self.reset()
            last = self.prev_frame_info
        record = np.array(meta['can_bus'], np.float64)
        motion = record.copy()
        if last['prev_bev'] is None:
            motion[[0, 1, 2, -1]] = 0
        else:
            motion[:3] -= last['prev_pos']
            motion[-1] -= last['prev_angle']
        meta = dict(meta, can_bus=motion)
        outputs = self.pts_bbox_head(self.extract_img_feat(img), [meta], last['prev_bev'])
        self.prev_frame_info = dict(
            prev_bev=outputs['bev_embed'],
            scene_token=meta['scene_token'],
            prev_pos=record[:3],
            prev_angle=record[-1],
        )
        return outputs
