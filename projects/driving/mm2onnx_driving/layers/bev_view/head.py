"""The head of a bird's-eye view: queries of cells and objects, and the branches of the decoder's layers.

Source: fundamentalvision/BEVFormer 66b65f3, `dense_heads/bevformer_head.py`.
Glossary: N cameras, C channels, h, w feature map, H, W padded pictures in pixels, Q cells of the bird's-eye
view, row by row, L decoder layers, R queries of objects, K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.cnn.bricks.transformer import build_positional_encoding
from mmcv.runner.base_module import BaseModule
from mmdet.models.utils import build_transformer
from torch import Tensor, nn

from mm2onnx_driving.layers.bev_view.steps import encode_view
from mm2onnx_driving.layers.bev_view.transformer import last_view
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.conditional_detr import QueryBoxCoder, box_branch, class_branch

CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
"""Loss weights of a box's columns, in checkpoints."""


class BevHead(BaseModule):
    """Test-time head: feature maps of all cameras to the bird's-eye view and objects.

    Args:
        num_classes, num_query: K, R.
        in_channels, num_cls_fcs, training: unused; C is `embed_dims` of the transformer.
        bev_h, bev_w: rows and columns of the view.
        with_box_refine, as_two_stage, code_size: must be True, False and 10 (ConfigError).
        transformer, bbox_coder, positional_encoding: configs.
        num_reg_fcs: hidden layers of the branches of classes and boxes.
        code_weights: loss weights, in checkpoints; default `CODE_WEIGHTS`.
    """

    shifts_present = False

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        num_query: int = 100,
        bev_h: int = 30,
        bev_w: int = 30,
        with_box_refine: bool = False,
        as_two_stage: bool = False,
        transformer: dict | None = None,
        bbox_coder: dict | None = None,
        positional_encoding: dict | None = None,
        num_cls_fcs: int = 2,
        num_reg_fcs: int = 2,
        code_size: int = 10,
        code_weights: Sequence[float] | None = None,
        init_cfg: dict | None = None,
        **training: Any,
    ) -> None:
        super().__init__(init_cfg)
        if not with_box_refine or as_two_stage:
            raise ConfigError(
                f'{type(self).__name__}: with_box_refine={with_box_refine}, as_two_stage={as_two_stage}; '
                'expected True and False, as in the published configs'
            )
        if code_size != len(CODE_WEIGHTS):
            raise ConfigError(
                f'{type(self).__name__}: code_size is {code_size}, expected {len(CODE_WEIGHTS)}'
            )
        self.bev_h, self.bev_w, self.num_query, self.num_classes = bev_h, bev_w, num_query, num_classes
        self.code_size = code_size
        self.bbox_coder = QueryBoxCoder(**{key: value for key, value in bbox_coder.items() if key != 'type'})
        self.pc_range = self.bbox_coder.pc_range
        self.positional_encoding = build_positional_encoding(positional_encoding)
        self.transformer = build_transformer(transformer)
        channels, layers = self.transformer.embed_dims, len(self.transformer.decoder.layers)
        self.cls_branches = nn.ModuleList(
            class_branch(channels, num_reg_fcs, num_classes) for _ in range(layers)
        )
        self.reg_branches = nn.ModuleList(box_branch(channels, num_reg_fcs, code_size) for _ in range(layers))
        self.bev_embedding = nn.Embedding(bev_h * bev_w, channels)
        self.query_embedding = nn.Embedding(num_query, 2 * channels)
        self.code_weights = nn.Parameter(
            torch.tensor(tuple(code_weights or CODE_WEIGHTS)), requires_grad=False
        )

    def encode(self, maps: Sequence[Tensor], img_metas: list[dict], prev_bev: Tensor | None) -> Tensor:
        """Return the bird's-eye view (1, Q, C) of one frame.

        Args:
            maps: feature maps of each level (1, N, C, h, w).
            img_metas: one dict: `can_bus` (18,) of `bev_motion.motion_since`; `lidar2img` [N] of (4, 4), to
                pixels of the padded pictures times depth; `pad_shape` (or `img_shape`) [N] of (H, W, 3), the
                first counts for all.
            prev_bev: the last bird's-eye view (Q, 1, C), not rotated; None at the first frame of a scene.
        """
        (meta,) = img_metas
        motion = np.asarray(meta['can_bus'], np.float64)
        numbers, lidar2img = (
            torch.from_numpy(np.asarray(values, np.float32)).to(maps[0].device)
            for values in (motion, meta['lidar2img'])
        )
        return encode_view(
            self,
            [level[0] for level in maps],
            numbers,
            lidar2img,
            tuple((meta.get('pad_shape') or meta['img_shape'])[0][:2]),
            last_view(self, motion, prev_bev),
        )
