"""RTMDet's head and detector. Source of names and settings: mmdet 3.3.0 `dense_heads/rtmdet_head.py`.

Results are those of mmdet 2.28's `BaseDenseHead.get_bboxes`, which reads the same outputs in the same way.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from mmdet.core import build_bbox_coder
from mmdet.models.builder import DETECTORS, HEADS
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.dense_heads.dense_test_mixins import BBoxTestMixin
from mmdet.models.detectors import SingleStageDetector
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.catalogue import offered
from mmdeploy_ext.models.rtmdet.csp import NORM, SILU, convolution

build_prior_generator = mmdet_module('mmdet.core').build_prior_generator
inverse_sigmoid = mmdet_module('mmdet.models.utils.transformer').inverse_sigmoid

POINTS = dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32])
DISTANCES = dict(type='DistancePointBBoxCoder')
TRAINS = 'RTMDet is trained by mmdet 3: its head has no loss here'


@offered(DETECTORS)
class RTMDet(SingleStageDetector):
    """A detector of one stage; `use_syncbn` is of training."""

    def __init__(self, *args: Any, use_syncbn: bool = True, **parts: Any) -> None:
        super().__init__(*args, **parts)


@offered(HEADS)
class RTMDetSepBNHead(BaseDenseHead, BBoxTestMixin):
    """Scores and distances of each level, by convolutions that all levels share or not, normalised apart."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        share_conv: bool = True,
        use_depthwise: bool = False,
        with_objectness: bool = True,
        exp_on_reg: bool = False,
        pred_kernel_size: int = 1,
        anchor_generator: Mapping[str, Any] = POINTS,
        bbox_coder: Mapping[str, Any] = DISTANCES,
        norm_cfg: Mapping[str, Any] = NORM,
        act_cfg: Mapping[str, Any] = SILU,
        train_cfg: Any = None,
        test_cfg: Any = None,
        init_cfg: Any = None,
        loss_cls: Any = None,
        loss_bbox: Any = None,
    ) -> None:
        """Build it, of the settings of mmdet 3.

        Levels that `share_conv` have the same convolutions, with normalisations of their own. With objectness
        the root of a score times it takes the place of the score; with `exp_on_reg` distances are
        exponentials. Of `train_cfg` and losses nothing is read, but for the kind of scores.

        Raises:
            ConfigError: scores by softmax; convolutions that are separable and shared.
        """
        super().__init__(init_cfg)
        if not dict(loss_cls or {}).get('use_sigmoid', True):
            raise ConfigError('model.bbox_head.loss_cls.use_sigmoid=False: RTMDet has sigmoid scores')
        if share_conv and use_depthwise:
            raise ConfigError('model.bbox_head: share_conv=True goes with use_depthwise=False')
        self.num_classes = self.cls_out_channels = num_classes
        self.use_sigmoid_cls, self.exp_on_reg, self.test_cfg = True, exp_on_reg, test_cfg
        self.prior_generator = build_prior_generator(dict(anchor_generator))
        self.bbox_coder = build_bbox_coder(dict(bbox_coder))
        conv = convolution(norm_cfg, act_cfg, use_depthwise)
        levels, priors = len(self.prior_generator.strides), self.prior_generator.num_base_priors[0]

        def branch() -> nn.ModuleList:
            channels = [in_channels] + [feat_channels] * stacked_convs
            branches = [
                nn.ModuleList(conv(*pair, 3, padding=1) for pair in itertools.pairwise(channels))
                for _ in range(levels)
            ]
            if share_conv:
                for layers in branches:
                    for layer, first in zip(layers, branches[0], strict=True):
                        layer.conv = first.conv
            return nn.ModuleList(branches)

        def last(columns: int) -> nn.ModuleList:
            padding = pred_kernel_size // 2
            return nn.ModuleList(
                nn.Conv2d(feat_channels, priors * columns, pred_kernel_size, padding=padding)
                for _ in range(levels)
            )

        self.cls_convs, self.reg_convs = branch(), branch()
        self.rtm_cls, self.rtm_reg = last(num_classes), last(4)
        self.rtm_obj = last(1) if with_objectness else None

    def forward(self, feats: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return class logits (B, C, h, w) and distances in pixels (B, 4, h, w) of every level."""
        scores, distances = [], []
        for level, (features, stride) in enumerate(zip(feats, self.prior_generator.strides, strict=True)):
            classes = boxes = features
            for layer in self.cls_convs[level]:
                classes = layer(classes)
            for layer in self.reg_convs[level]:
                boxes = layer(boxes)
            logits, sides = self.rtm_cls[level](classes), self.rtm_reg[level](boxes)
            if self.rtm_obj is not None:
                logits = inverse_sigmoid((logits.sigmoid() * self.rtm_obj[level](boxes).sigmoid()).sqrt())
            scores.append(logits)
            distances.append((sides.exp() if self.exp_on_reg else sides) * stride[0])
        return scores, distances

    def loss(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to train."""
        raise NotImplementedError(TRAINS)
