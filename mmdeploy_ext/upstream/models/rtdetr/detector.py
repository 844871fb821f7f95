"""RT-DETR as an mmdet 2.x detector; its state dict has the original's keys.

Source: lyuwenyu/RT-DETR 068dfde, rtdetr_pytorch/src/zoo/rtdetr/rtdetr.py.

Glossary: B images, H, W pixels of the network input, D embedding, Q queries, C classes, n objects or
detections.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.core import bbox2result
from mmdet.models.builder import DETECTORS, build_backbone, build_head, build_neck
from mmdet.models.detectors.base import BaseDetector

from mmdeploy_ext.base.errors import ShapeError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.rtdetr.decoder import Postprocess

STRIDE = 32
"""Stride of the coarsest map, pixels: divisor of the images' sides."""
MAX_PER_IMG = 300


@registered_if_named(DETECTORS)
class RTDETR(BaseDetector):
    """Backbone, hybrid encoder, decoder."""

    def __init__(
        self,
        backbone: dict,
        encoder: dict,
        decoder: dict,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        pretrained: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if pretrained:
            backbone = dict(backbone, init_cfg=dict(type='Pretrained', checkpoint=pretrained))
        self.backbone = build_backbone(backbone)
        self.encoder = build_neck(encoder)
        self.decoder = build_head(decoder)
        self.test_cfg = dict(test_cfg or {})
        self.max_per_img = int(self.test_cfg.get('max_per_img', MAX_PER_IMG))
        self.postprocess = Postprocess(self.decoder.num_classes, self.max_per_img)

    def extract_feat(self, img: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the encoder's maps (B, D, H / s, W / s), s = 8, 16, 32."""
        height, width = img.shape[2:]
        if not torch.compiler.is_compiling() and (height % STRIDE or width % STRIDE):  # or sizes would freeze
            raise ShapeError(
                f'images: got {height}x{width}; RT-DETR needs multiples of {STRIDE}: resize, do not pad'
            )
        return self.encoder(self.backbone(img))

    def simple_test(
        self, img: torch.Tensor, img_metas: Sequence[dict[str, Any]], rescale: bool = False, **_: object
    ) -> list[list[np.ndarray]]:
        """Return per image and class (n, 5) x1 y1 x2 y2 score; original pixels with `rescale`."""
        labels, boxes, scores = self.detect(img, target_sizes(img, img_metas, rescale))
        rows = torch.cat([boxes, scores[..., None]], -1)
        return [
            bbox2result(rows_of_image, labels_of_image, self.decoder.num_classes)
            for rows_of_image, labels_of_image in zip(rows, labels, strict=True)
        ]

    def detect(
        self, img: torch.Tensor, orig_target_sizes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return labels (B, n), boxes (B, n, 4) xyxy and scores (B, n) of images (B, 3, H, W).

        Boxes are in pixels of `orig_target_sizes` (B, 2), width and height, not clipped.
        """
        logits, boxes, _ = self.decoder(self.extract_feat(img))
        return self.postprocess(logits, boxes, orig_target_sizes)

    def aug_test(self, imgs: Sequence[torch.Tensor], img_metas: Any, **_: object) -> Any:
        raise NotImplementedError('RT-DETR has no test-time augmentation; use flip=False and one img_scale')


def target_sizes(img: torch.Tensor, img_metas: Sequence[dict[str, Any]], rescale: bool) -> torch.Tensor:
    """Return (B, 2) int64 width and height of the originals with `rescale`, else of the input."""
    if not rescale:
        sizes = [(img.shape[3], img.shape[2])] * len(img_metas)
    else:
        sizes = [(meta['ori_shape'][1], meta['ori_shape'][0]) for meta in img_metas]
    return torch.tensor(sizes, dtype=torch.int64, device=img.device)
