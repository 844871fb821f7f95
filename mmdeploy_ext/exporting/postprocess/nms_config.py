"""The settings of suppression in a `test_cfg`, and checks of its numbers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.plain import Plain
from mmdeploy_ext.exporting.ops.soft_nms import SOFT_NMS


@dataclasses.dataclass(frozen=True)
class NmsConfig(Plain):
    """What `test_cfg` decides about dense post-processing.

    Attributes:
        score_thr: class scores (before the score factor) must exceed this.
        nms_pre: (anchor, class) pairs kept per level, by class score; -1 keeps all.
        iou_threshold: of the class-aware NMS.
        max_per_img: detections kept per image; -1 keeps all.
        class_agnostic: suppress across classes.
    """

    score_thr: float
    nms_pre: int
    iou_threshold: float
    max_per_img: int
    class_agnostic: bool = False


@dataclasses.dataclass(frozen=True)
class SoftNmsConfig(NmsConfig):
    """The same with `soft_nms`, by which boxes that overlap a better one lose score.

    Attributes:
        method: of mmcv's `soft_nms`: a name of `ops/soft_nms.py`.
        sigma: of the method gaussian.
        min_score: what falls below it is gone.
    """

    method: str = 'linear'
    sigma: float = 0.5
    min_score: float = 1e-3


def nms_config(test_cfg: Mapping[str, Any], soft: bool = False, key: str = 'model.test_cfg') -> NmsConfig:
    """Read an mmdet `test_cfg`; with `soft` one of `soft_nms` is taken, too, as a `SoftNmsConfig`.

    `deploy_nms_pre` replaces `nms_pre` when it is set: -1 = no top-k, K = K.

    Args:
        test_cfg: of a head.
        soft: whether `soft_nms` has a form here.
        key: of `test_cfg` in the config, for messages.

    Raises:
        ConfigError: an NMS type or option that the graph does not reproduce.
    """
    nms = dict(test_cfg.get('nms') or {})
    kind = nms.pop('type', 'nms')
    decay = _decay(nms) if soft and kind == 'soft_nms' else None
    if kind != 'nms' and decay is None:
        raise ConfigError(
            f"test_cfg.nms.type={kind!r} has no ONNX form that gives the same detections; expected 'nms' "
            f'({_plain_nms(key, test_cfg)})'
        )
    iou_threshold = nms.pop('iou_threshold', None)
    class_agnostic = bool(nms.pop('class_agnostic', False))
    nms.pop('split_thr', None)
    if iou_threshold is None or nms:
        raise ConfigError(
            f'test_cfg.nms: got {dict(test_cfg.get("nms") or {})}; expected iou_threshold, and only '
            f'class_agnostic and split_thr beside it ({_plain_nms(key, test_cfg)})'
        )
    limits = {key: test_cfg.get(key, -1) for key in ('nms_pre', 'max_per_img')}
    if test_cfg.get('deploy_nms_pre') is not None:
        limits['nms_pre'] = test_cfg['deploy_nms_pre']
    for key, value in limits.items():
        if number(key, value, int) == 0 or value < -1:
            raise ConfigError(f'test_cfg.{key}={value}: expected a positive number, or -1 for no limit')
        limits[key] = int(value)
    found = dict(
        score_thr=number('score_thr', test_cfg.get('score_thr', 0.0), float),
        iou_threshold=number('nms.iou_threshold', iou_threshold, float),
        class_agnostic=class_agnostic,
        **limits,
    )
    if decay is None:
        return NmsConfig(**found)
    positive('max_per_img (with soft_nms)', limits['max_per_img'])
    return SoftNmsConfig(**found, **decay)


def _plain_nms(key: str, test_cfg: Mapping[str, Any]) -> str:
    """Return the option that replaces what a config has by plain NMS of the same threshold."""
    threshold = (test_cfg.get('nms') or {}).get('iou_threshold', 0.5)
    values = {'_delete_': True, 'type': 'nms', 'iou_threshold': threshold}
    return f'--cfg-options {" ".join(f"{key}.nms.{name}={value}" for name, value in values.items())}'


def _decay(nms: dict[str, Any]) -> dict[str, Any]:
    """Take what `SoftNmsConfig` has out of `test_cfg.nms`."""
    plain = dict(method=nms.pop('method', SoftNmsConfig.method))
    if plain['method'] not in SOFT_NMS:
        raise ConfigError(
            f'test_cfg.nms.method={plain["method"]!r}: expected one of {", ".join(sorted(SOFT_NMS))}'
        )
    for key in ('sigma', 'min_score'):
        plain[key] = number(f'nms.{key}', nms.pop(key, getattr(SoftNmsConfig, key)), float)
    if plain['sigma'] <= 0 or plain['min_score'] < 0:
        raise ConfigError(f'test_cfg.nms: got {plain}; expected a positive sigma, min_score of 0 or more')
    return plain


def number(key: str, value: Any, kind: type) -> Any:
    """Return a value of `test_cfg` as `kind`, int or float; the ConfigError names the key of another one."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not math.isfinite(value) or kind(value) != value:
        wanted = 'a whole number' if kind is int else 'a number'
        raise ConfigError(f'test_cfg.{key}={value!r}: expected {wanted}')
    return kind(value)


def positive(key: str, value: Any) -> int:
    """Return an entry of `test_cfg` that has to be a whole number of at least 1; the ConfigError names it."""
    if (whole := number(key, value, int)) < 1:
        raise ConfigError(f'test_cfg.{key}={value}: expected a positive number')
    return whole


def capped(*limits: int) -> int:
    """Return the smallest of several limits; those of 0 or below limit nothing."""
    return min(value for value in limits if value > 0)
