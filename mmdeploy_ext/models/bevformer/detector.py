"""BEVFormer's detector at test time: pictures to feature maps, frames to scenes.

Source: fundamentalvision/BEVFormer 66b65f3, `detectors/bevformer.py`. Differs in: nothing is changed in
place, neither the metas nor the picture nor the last bird's-eye view.
"""

from typing import Any

import numpy as np
from mmdet.models import DETECTORS
from mmdet3d.core import bbox3d2result
from mmdet3d.models.detectors.mvx_two_stage import MVXTwoStageDetector
from torch import Tensor

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.models.catalogue import offered


@offered(DETECTORS)
class BEVFormer(MVXTwoStageDetector):
    """Camera-only detector that runs a scene frame by frame.

    Args:
        use_grid_mask: of training.
        video_test_mode: False forgets the last bird's-eye view before every frame.
        modules: backbone, neck and head, as mmdet3d's detectors take them.
    """

    def __init__(self, use_grid_mask: bool = False, video_test_mode: bool = False, **modules: Any) -> None:
        super().__init__(**modules)
        self.video_test_mode = video_test_mode
        self.reset()

    def reset(self) -> None:
        """Forget the last frame: the next one begins a scene."""
        self.prev_frame_info: dict[str, Any] = dict(
            prev_bev=None, scene_token=None, prev_pos=np.zeros(3), prev_angle=0.0
        )

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
            raise NotImplementedError(
                'BEVFormer of mm2onnx runs at test time; train with the repository of BEVFormer'
            )
        return self.forward_test(**data)

    def forward_test(
        self, img_metas: list, img: list[Tensor], rescale: bool = False, **data: Any
    ) -> list[dict]:
        """Return a list of one dict, 'pts_bbox' -> boxes (m), scores and labels of one frame; B is 1.

        The metas are [one augmentation][one sample], `img` is [one augmentation] of (1, N, 3, H, W).
        """
        if not isinstance(img_metas, list) or len(img_metas) != 1:
            raise DataError('BEVFormer tests one augmentation: img_metas has to be a list of one list')
        outputs = self.run_frame(img_metas[0], tap('img', img[0]))
        samples = self.pts_bbox_head.get_bboxes(outputs, img_metas[0])
        return [{'pts_bbox': bbox3d2result(*boxes_scores_labels)} for boxes_scores_labels in samples]

    def run_frame(self, img_metas: list[dict], img: Tensor) -> dict[str, Tensor]:
        """Return the head's outputs for one frame; another scene token than before begins a scene.

        `img_metas` is a list of one dict, `img` (1, N, 3, H, W).
        """
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
        for name, tensor in outputs.items():
            tap(name, tensor)
        return outputs
