"""StreamPETR's detector at test time: pictures to features, frames to scenes.

Source: exiawsh/StreamPETR 95f6470, models/detectors/petr3d.py.

Glossary: N cameras, H, W pictures in px, C channels, h, w feature map.
"""

from typing import Any

from mmdet.models import DETECTORS
from mmdet3d.core import bbox3d2result
from torch import Tensor

from mm2onnx_driving.layers.camera_detector import CameraDetector
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(DETECTORS)
class Petr3D(CameraDetector):
    """Camera-only detector that runs a scene frame by frame."""

    def __init__(
        self,
        num_frame_head_grads: int = 2,
        num_frame_backbone_grads: int = 2,
        num_frame_losses: int = 2,
        stride: int = 16,
        position_level: int = 0,
        aux_2d_only: bool = True,
        single_test: bool = False,
        **modules: Any,
    ) -> None:
        super().__init__(**modules)
        name = type(self).__name__
        if not aux_2d_only:
            raise ConfigError(f'{name}: aux_2d_only=False (focal token sampling) is not supported')
        if not hasattr(self.pts_bbox_head, 'stride'):
            # PETR and PETRv2 have a detector of the same type, see `Offer.beside`
            raise ConfigError(
                f'{name}: pts_bbox_head is {type(self.pts_bbox_head).__name__}, expected a head of '
                'StreamPETR; import the plugin of the repository that the config comes from'
            )
        if stride != self.pts_bbox_head.stride:
            raise ConfigError(
                f"{name}: stride is {stride}, the head's is {self.pts_bbox_head.stride}; set both to "
                'the same value'
            )
        self.position_level = position_level
        self.prev_scene_token: str | None = None

    def extract_img_feat(self, img: Tensor) -> Tensor:
        return super().extract_img_feat(img)[self.position_level]

    def forward_test(self, img_metas: list, rescale: bool = False, **data: Any) -> list[dict]:
        if not isinstance(img_metas, list) or len(img_metas) != 1:
            raise DataError(
                'Petr3D supports one augmentation at test time: img_metas must be a list of one list'
            )
        img = data.pop('img')[0]
        single = {key: values[0][0].unsqueeze(0) for key, values in data.items()}
        return self.simple_test(img_metas[0], img=img, **single)

    def simple_test(self, img_metas: list[dict], img: Tensor, **data: Tensor) -> list[dict]:
        """Return a list of one dict, `pts_bbox` -> a dict on the CPU, of pictures (N or 1, N, 3, H, W)."""
        img = img.unsqueeze(0) if img.dim() == 4 else img
        if img.shape[0] != 1:
            raise DataError(
                'Petr3D supports one sample at a time, since scenes are streams; got a batch of '
                f'{img.shape[0]}'
            )
        outputs = self.run_frame(img_metas, tap('img', img), **data)
        samples = self.pts_bbox_head.get_bboxes(outputs, img_metas)
        return [{'pts_bbox': bbox3d2result(*boxes_scores_labels)} for boxes_scores_labels in samples]

    def run_frame(self, img_metas: list[dict], img: Tensor, **data: Tensor) -> dict[str, Tensor]:
        scene_token = img_metas[0]['scene_token']
        is_new = scene_token != self.prev_scene_token
        if is_new:
            self.prev_scene_token = scene_token
            self.pts_bbox_head.reset_memory()
        data['prev_exists'] = img.new_full((1,), float(not is_new))
        for name in ('timestamp', 'ego_pose', 'ego_pose_inv', 'prev_exists'):
            tap(name, data[name])
        return self.pts_bbox_head(self.extract_img_feat(img), img_metas, **data)


@registered_if_named(DETECTORS)
class Petr3DPTH(Petr3D):
    """The name that the deployment fork's `_pth` configs use."""


@registered_if_named(DETECTORS)
class Petr3DONNX(Petr3D):
    """The name that the deployment fork's `_onnx` configs use."""
