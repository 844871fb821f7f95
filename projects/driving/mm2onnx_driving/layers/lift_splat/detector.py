"""Detectors of cameras that lift pictures into a bird's-eye view, at test time, without a head.

Source: HuangJunJie2017/BEVDet f71858d, detectors/bevdet.py.

Glossary: B samples, N cameras, C channels, H, W pictures, Y, X rows and columns of the bird's-eye view.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet3d.models import builder
from mmdet3d.models.detectors.mvx_two_stage import MVXTwoStageDetector
from torch import Tensor

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.base.taps import tap

OWN = dict(CenterHead='BEVDetCenterHead', LSSViewTransformer='BEVDetViewTransformer')
"""Type in a config that mmdet3d has, too -> the type that a detector builds."""


def own_part(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config, type=OWN.get(config['type'], config['type']))


def only_map(maps: Any) -> Tensor:
    return maps[0] if isinstance(maps, list | tuple) else maps


class LiftSplatDetector(MVXTwoStageDetector):
    """Camera-only detector that lifts pictures into a bird's-eye view; `results_of` is its head's.

    `img_inputs` are pictures (B, N, 3, H, W), sensor2ego, ego2global (B, N, 4, 4), intrins, post_rots
    (B, N, 3, 3), post_trans (B, N, 3) and bda (B, 3, 3); the key ego frame is that of the first camera.
    """

    def __init__(
        self,
        img_view_transformer: Mapping[str, Any],
        img_bev_encoder_backbone: Mapping[str, Any],
        img_bev_encoder_neck: Mapping[str, Any],
        **modules: Any,
    ) -> None:
        super().__init__(**modules)
        self.img_view_transformer = builder.build_neck(own_part(img_view_transformer))
        self.img_bev_encoder_backbone = builder.build_backbone(img_bev_encoder_backbone)
        self.img_bev_encoder_neck = builder.build_neck(img_bev_encoder_neck)

    def image_encoder(self, images: Tensor) -> Tensor:
        """Return the feature maps (B, N, C, h, w) of pictures (B, N, 3, H, W)."""
        maps = only_map(self.img_neck(self.img_backbone(images.flatten(0, 1))))
        return tap('neck', maps).unflatten(0, images.shape[:2])

    def bev_encoder(self, view: Tensor) -> Tensor:
        return tap('bev_neck', only_map(self.img_bev_encoder_neck(self.img_bev_encoder_backbone(view))))

    def bev_map(self, images: Tensor, *matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the view (B, C, Y, X) of pictures, and depth, see `BEVDetViewTransformer.forward`."""
        view, depth = self.img_view_transformer([self.image_encoder(images), *matrices])
        tap('depth', depth)
        return tap('bev_feat', view), depth

    def extract_img_feat(
        self, img: Sequence[Tensor], img_metas: Any = None, **unused: Any
    ) -> tuple[list[Tensor], Tensor]:
        images, sensor2ego, ego2global, *matrices = img
        sensor2keyego = in_key_ego(ego2global[:, :1], ego2global, sensor2ego)
        place = sensor2keyego, ego2global, *matrices
        view, depth = self.bev_map(images, *place, self.img_view_transformer.get_mlp_input(*place))
        return [self.bev_encoder(view)], depth

    def forward(self, return_loss: bool = True, **data: Any) -> Any:
        """Test, as mmcv's runners call it; NotImplementedError for training."""
        if return_loss:
            name = type(self).__name__
            raise NotImplementedError(f"mm2onnx's {name} cannot train; use its own repository")
        return self.forward_test(**data)

    def forward_test(
        self,
        img_metas: Any = None,
        img_inputs: Any = None,
        points: Any = None,
        rescale: bool = False,
        **how: Any,
    ) -> list[Any]:
        """Return a list of the results of one sample.

        The metas are [one augmentation][one sample], `img_inputs` [one augmentation] of the inputs; `how` is
        given to `extract_img_feat`.
        """
        if not isinstance(img_inputs, list) or len(img_inputs) != 1:
            raise DataError(
                f'{type(self).__name__} supports one augmentation at test time: img_inputs must be a list '
                'of one'
            )
        maps, _ = self.extract_img_feat(img_inputs[0], img_metas[0], **how)
        return self.results_of(maps, img_metas[0])


def in_key_ego(key2global: Tensor, ego2global: Tensor, sensor2ego: Tensor) -> Tensor:
    """Return camera to key ego (..., 4, 4) float32, composed in float64."""
    return (torch.inverse(key2global.double()) @ ego2global.double() @ sensor2ego.double()).float()
