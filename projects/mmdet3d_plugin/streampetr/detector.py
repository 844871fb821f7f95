"""StreamPETR's detector: images to features, frames to scenes.

Source: exiawsh/StreamPETR 95f6470, models/detectors/petr3d.py.
"""

from typing import Any

from mmdet.models import DETECTORS
from mmdet3d.core import bbox3d2result
from mmdet3d.models.detectors.mvx_two_stage import MVXTwoStageDetector
from torch import Tensor

from mmdeploy_ext.core.errors import ConfigError, DataError
from mmdeploy_ext.core.taps import tap
from projects.mmdet3d_plugin.streampetr.training import Petr3DTraining


@DETECTORS.register_module()
class Petr3D(Petr3DTraining, MVXTwoStageDetector):
    """Camera-only detector that runs a scene frame by frame.

    Args:
        use_grid_mask: hide squares of the images in training.
        num_frame_head_grads, num_frame_backbone_grads, num_frame_losses: frames of a training clip, counted
            from its end, with gradients in the head, in the backbone, and with losses.
        stride: px per cell of the feature level that is used.
        position_level: which level of the neck is used.
        aux_2d_only: the 2D head only helps training; False, which samples tokens by it, is refused.
        single_test: not used; upstream's configs may give it.
    """

    def __init__(
        self,
        use_grid_mask: bool = False,
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
        if not aux_2d_only:
            raise ConfigError(
                f'{type(self).__name__}: aux_2d_only=False (focal token sampling) is not supported'
            )
        if stride != self.pts_bbox_head.stride:
            raise ConfigError(
                f"{type(self).__name__}: stride is {stride}, the head's is {self.pts_bbox_head.stride}; "
                'give both the same'
            )
        self.init_training(
            use_grid_mask,
            num_frame_head_grads,
            num_frame_backbone_grads,
            num_frame_losses,
            stride,
            position_level,
            aux_2d_only,
            single_test,
        )
        self.prev_scene_token: str | None = None

    def extract_img_feat(self, img: Tensor) -> Tensor:
        """Return features (B, N, C, h, w) of images (B, N, 3, H, W)."""
        return self._map_images(img.unsqueeze(1)).squeeze(1)

    def forward(self, return_loss: bool = True, **data: Any) -> Any:
        """Train (`return_loss`) or test, as mmcv's runners call it."""
        return self.forward_train(**data) if return_loss else self.forward_test(**data)

    def forward_test(self, img_metas: list, rescale: bool = False, **data: Any) -> list[dict]:
        """Unwrap the one augmentation that the test pipeline makes, and run.

        Args:
            img_metas: [one augmentation][one sample] dict.
            rescale: not used; boxes are in m.
            data: [one augmentation] of `img` (1, N, 3, H, W) and, each with a batch or list axis of 1, of the
                calibration and pose keys.
        """
        if not isinstance(img_metas, list) or len(img_metas) != 1:
            raise DataError('Petr3D tests one augmentation: img_metas has to be a list of one list')
        img = data.pop('img')[0]
        single = {key: values[0][0].unsqueeze(0) for key, values in data.items()}
        return self.simple_test(img_metas[0], img=img, **single)

    def simple_test(self, img_metas: list[dict], img: Tensor, **data: Tensor) -> list[dict]:
        """Detect in one frame (B = 1): a list of one dict with `pts_bbox`."""
        img = img.unsqueeze(0) if img.dim() == 4 else img
        if img.shape[0] != 1:
            raise DataError(
                f'Petr3D tests one sample at a time, since scenes are streams; got a batch of {img.shape[0]}'
            )
        outputs = self.run_frame(img_metas, tap('img', img), **data)
        return [
            {'pts_bbox': bbox3d2result(*detections)}
            for detections in self.pts_bbox_head.get_bboxes(outputs, img_metas)
        ]

    def run_frame(self, img_metas: list[dict], img: Tensor, **data: Tensor) -> dict[str, Any]:
        """Return the head's outputs for one frame; another scene token than before starts a new stream."""
        scene_token = img_metas[0]['scene_token']
        is_new = scene_token != self.prev_scene_token
        if is_new:
            self.prev_scene_token = scene_token
            self.pts_bbox_head.reset_memory()
        data['prev_exists'] = img.new_full((1,), float(not is_new))
        for name in ('timestamp', 'ego_pose', 'ego_pose_inv', 'prev_exists'):
            tap(name, data[name])
        return self.pts_bbox_head(self.extract_img_feat(img), img_metas, **data)


@DETECTORS.register_module()
class Petr3DPTH(Petr3D):
    """The name that the deployment fork's `_pth` configs use."""


@DETECTORS.register_module()
class Petr3DONNX(Petr3D):
    """The name that the deployment fork's `_onnx` configs use."""
