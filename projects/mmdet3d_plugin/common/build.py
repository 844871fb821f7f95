"""Models of mmdet3d from configs, without weights."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def build_without_weights(cfg: Any) -> nn.Module:
    """Build the detector of a config in evaluation mode; no pretrained backbone is looked for.

    Raises:
        ConfigError: it cannot be built; the message names the file and the reason.
    """
    from mmdet3d.models import build_model

    model_cfg = cfg.model.copy()
    model_cfg.pretrained = None
    if model_cfg.get('img_backbone', {}).get('init_cfg'):
        model_cfg.img_backbone.init_cfg = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return build_model(model_cfg, test_cfg=cfg.get('test_cfg')).eval()
    except ConfigError as error:
        raise ConfigError(f'{cfg.filename}: {error}') from error
    except Exception as error:
        raise ConfigError(
            f'{cfg.filename}: the model cannot be built: {type(error).__name__}: {error}'
        ) from error
