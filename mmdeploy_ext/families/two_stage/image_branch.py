"""ImVoteNet's first stage: a two-stage detector of pictures in mmdet3d, whose parts have the prefix `img_`.

It is trained by itself, before the branch of points is added (`configs/imvotenet/imvotenet_faster_rcnn_*.py`
of mmdet3d 1.0.0rc6). Its layers and heads are those of a Faster R-CNN of mmdet, and so are its results; what
differs is what its parts are called.
"""

import copy
import re
from collections.abc import Mapping
from typing import Any

import mmdet3d.datasets  # noqa: F401 - registers data sets and steps of pipelines
from mmdet.models.builder import DETECTORS
from mmdet3d.models import build_detector, detectors
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.two_stage.family import TwoStageFamily
from mmdeploy_ext.families.two_stage.models import TwoStageModels
from mmdeploy_ext.models.building import build_without_weights, names_of_class

PREFIX = 'img_'
"""What the keys of the parts, and of their settings in `test_cfg`, begin with."""
PARTS = ('backbone', 'neck', 'rpn_head', 'roi_head')
"""Parts of a two-stage detector of mmdet."""
KEYS = re.compile(r'\b(model|test_cfg)\.(?=(backbone|neck|rpn_head|roi_head|rpn|rcnn)\b)')
"""What stands in messages before a key that has the prefix here: a part, or its settings."""


class ImageBranchModels(TwoStageModels):
    """mmdet3d's `ImVoteNet` without its branch of points.

    The model is the user's own, with the names that mmdet has for its parts as further attributes.
    """

    def claims(self, cfg: Any) -> Claim:
        """Return `Claim.DETECTOR` for an ImVoteNet with both heads of pictures and no branch of points."""
        model = cfg.model
        if detectors.ImVoteNet.__name__ not in names_of_class(DETECTORS, model.get('type')):
            return Claim.NO
        has_points = any(model.get(key) for key in model if key.startswith('pts_'))
        has_heads = all(model.get(f'{PREFIX}{part}') for part in ('rpn_head', 'roi_head'))
        return Claim.DETECTOR if has_heads and not has_points else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """Refuse what `TwoStageModels` does; messages name the keys of the user's config, with `img_`."""
        try:
            super().check(as_two_stage(cfg), options)
        except UsageError as error:
            raise type(error)(KEYS.sub(rf'\g<0>{PREFIX}', str(error))) from error

    def build(self, cfg: Any) -> nn.Module:
        """Build the user's detector without weights, and give its parts mmdet's names besides.

        ConfigError: it cannot be built.
        """
        model = build_without_weights(cfg, build_detector, f'{PREFIX}backbone')
        # not registered with the module a second time: its weights keep their names
        for part in PARTS:
            vars(model)[part] = getattr(model, f'{PREFIX}{part}', None)
        vars(model)['extract_feat'] = model.extract_img_feat
        return model


IMAGE_BRANCH = TwoStageFamily(
    name='two_stage_image_branch',
    models=ImageBranchModels(),
)


def as_two_stage(cfg: Any) -> Any:
    """Return a copy of a config whose `model` has mmdet's keys and type; the config itself stays.

    Entries of `test_cfg` lose the prefix, too.
    """
    result = copy.deepcopy(cfg)
    model = _without_prefix(cfg.model)
    model.update(type='FasterRCNN', test_cfg=_without_prefix(cfg.model.get('test_cfg') or {}))
    result.model = model
    return result


def _without_prefix(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(PREFIX): copy.deepcopy(value) for key, value in settings.items()}
