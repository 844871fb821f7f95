"""A detector that keeps its bird's-eye view: pictures to feature maps, frames to scenes.

Source: fundamentalvision/BEVFormer 66b65f3, `detectors/bevformer.py`.
"""

from typing import Any

import numpy as np
from torch import Tensor

from mm2onnx_driving.layers.camera_detector import CameraDetector


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
