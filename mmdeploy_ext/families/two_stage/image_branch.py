"""ImVoteNet's first stage: a two-stage detector of pictures in mmdet3d, with the prefix `img_`.

It is trained by itself (`configs/imvotenet/imvotenet_faster_rcnn_*.py` of mmdet3d 1.0.0rc6).
"""

import copy
import re
from collections.abc import Mapping
from typing import Any

import mmdet3d.datasets  # noqa: F401 - registers data sets and steps of pipelines
from mmdet3d.models import build_detector
from torch import nn

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.families.two_stage.checks import check_two_stage
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.models.building import build_without_weights

PREFIX = 'img_'
PARTS = ('backbone', 'neck', 'rpn_head', 'roi_head')
KEYS = re.compile(r'\b(model|test_cfg)\.(?=(backbone|neck|rpn_head|roi_head|rpn|rcnn)\b)')
"""Text of messages before a key with the prefix."""


def check(cfg: Any, options: Options) -> None:
    try:
        check_two_stage(as_two_stage(cfg), options)
    except UsageError as error:
        raise type(error)(KEYS.sub(rf'\g<0>{PREFIX}', str(error))) from error


def build(cfg: Any) -> nn.Module:
    model = build_without_weights(cfg, build_detector, f'{PREFIX}backbone')
    # not registered with the module a second time: its weights keep their names
    for part in PARTS:
        vars(model)[part] = getattr(model, f'{PREFIX}{part}', None)
    vars(model)['extract_feat'] = model.extract_img_feat
    return model


def as_two_stage(cfg: Any) -> Any:
    result = copy.deepcopy(cfg)
    model = _without_prefix(cfg.model)
    model.update(type='FasterRCNN', test_cfg=_without_prefix(cfg.model.get('test_cfg') or {}))
    result.model = model
    return result


def _without_prefix(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(PREFIX): copy.deepcopy(value) for key, value in settings.items()}
