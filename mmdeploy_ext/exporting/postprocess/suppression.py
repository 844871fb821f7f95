"""Suppression of boxes: its settings in a `test_cfg`, and from scored boxes to the best results with padding.

Glossary: B batch, N boxes, n result rows, A rows and D columns of a table.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmdeploy_ext.base.config import cfg_options
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.spec.facts import NmsConfig
from mmdeploy_ext.upstream.operators.nms import (
    NO_CANDIDATE,
    SOFT_NMS,
    batched_keep,
    class_offsets,
    efficient_nms,
    nms_of_sorted,
)
from mmdeploy_ext.upstream.operators.rotated_nms import rotated_class_offsets, rotated_keep

GROUPS = 32
"""Groups of labels for an NMS without a limit of results: a box is compared with all better kept boxes."""
NMS_ARGUMENTS = ('iou_threshold', 'class_agnostic', 'split_thr')
SOFT_NMS_ARGUMENTS = ('method', 'sigma', 'min_score')
SOFT_NMS_IOU = 0.3
"""The `iou_threshold` of mmcv's `soft_nms` where a config has none."""


def nms_config(test_cfg: Mapping[str, Any], soft: bool = False, key: str = 'model.test_cfg.nms') -> NmsConfig:
    """Read an mmdet `test_cfg`; with `soft` also the type `soft_nms`.

    `key` is the key of `nms` in the config, for messages.
    """
    given = test_cfg.get('nms') or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f'test_cfg.nms={given!r}: expected a dict of type and iou_threshold')
    nms = nms_arguments(given)
    nms_type = nms.pop('type', 'nms')
    is_soft = soft and nms_type == 'soft_nms'
    if nms_type != 'nms' and not is_soft:
        raise ConfigError(
            f'test_cfg.nms.type={nms_type!r} cannot be exported with the same detections; expected '
            f"'nms'{_advice(key, given, 'nms', NMS_ARGUMENTS)}"
        )
    names = (*NMS_ARGUMENTS, *SOFT_NMS_ARGUMENTS) if is_soft else NMS_ARGUMENTS
    if nms.get('iou_threshold') is None or not set(nms) <= set(names):
        raise ConfigError(
            f'test_cfg.nms: got {dict(given)}; expected iou_threshold, and only '
            f'{", ".join(names[1:])} beside it{_advice(key, given, nms_type, names)}'
        )
    decay = _decay(nms) if is_soft else None
    limits = {name: test_cfg.get(name, -1) for name in ('nms_pre', 'max_per_img')}
    if test_cfg.get('deploy_nms_pre') is not None:
        limits['nms_pre'] = test_cfg['deploy_nms_pre']
    for name, value in limits.items():
        if number(name, value, int) == 0 or value < -1:
            raise ConfigError(f'test_cfg.{name}={value}: expected a positive number, or -1 for no limit')
        limits[name] = int(value)
    settings = dict(
        score_thr=number('score_thr', test_cfg.get('score_thr', 0.0), float),
        iou_threshold=number('nms.iou_threshold', nms['iou_threshold'], float),
        class_agnostic=bool(nms.get('class_agnostic', False)),
        **limits,
    )
    if not 0 <= settings['iou_threshold'] <= 1:  # ONNX Runtime takes no other
        raise ConfigError(f'test_cfg.nms.iou_threshold={nms["iou_threshold"]}: expected 0 to 1')
    if decay is None:
        return NmsConfig(**settings)
    positive('max_per_img (with soft_nms)', limits['max_per_img'])
    return NmsConfig(**settings, **decay)


def nms_arguments(nms: Mapping[str, Any]) -> dict[str, Any]:
    """Return `test_cfg.nms` with `iou_threshold`, which mmcv's functions also take as `iou_thr`."""
    if 'iou_thr' not in nms:
        return dict(nms)
    if 'iou_threshold' in nms:
        raise ConfigError(f'test_cfg.nms: got {dict(nms)}; expected iou_thr or iou_threshold, not both')
    return {'iou_threshold' if name == 'iou_thr' else name: value for name, value in nms.items()}


def _advice(key: str, given: Mapping[str, Any], nms_type: str, names: Sequence[str]) -> str:
    values = {name: value for name, value in given.items() if name in (*names, 'iou_thr')}
    if given.get('type') == 'soft_nms' and not {'iou_thr', 'iou_threshold'} & set(given):
        values['iou_threshold'] = SOFT_NMS_IOU
    if values.get('iou_thr', values.get('iou_threshold')) is None:
        return ''
    values = {'_delete_': True, 'type': nms_type, **values}
    return ': ' + cfg_options({f'{key}.{name}': value for name, value in values.items()})


def _decay(nms: Mapping[str, Any]) -> dict[str, Any]:
    decay = dict(method=nms.get('method', 'linear'))
    if decay['method'] not in list(SOFT_NMS):
        raise ConfigError(
            f'test_cfg.nms.method={decay["method"]!r}: expected one of {", ".join(sorted(SOFT_NMS))}'
        )
    for key, default in (('sigma', 0.5), ('min_score', 1e-3)):
        decay[key] = number(f'nms.{key}', nms.get(key, default), float)
    if decay['sigma'] <= 0 or decay['min_score'] < 0:
        raise ConfigError(f'test_cfg.nms: got {decay}; expected a positive sigma, min_score of 0 or more')
    return decay


def number(key: str, value: Any, kind: type) -> Any:
    """Return a value of `test_cfg` as `kind`, int or float."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)  # numpy's, too
    if not is_number or not math.isfinite(value) or kind(value) != value:
        expected = 'a whole number' if kind is int else 'a number'
        raise ConfigError(f'test_cfg.{key}={value!r}: expected {expected}')
    return kind(value)


def positive(key: str, value: Any) -> int:
    """Return a whole number of at least 1; else ConfigError names `key`."""
    if (count := number(key, value, int)) < 1:
        raise ConfigError(f'test_cfg.{key}={value}: expected a positive number')
    return count


def capped(*limits: int) -> int:
    """Return the smallest limit above 0."""
    return min(value for value in limits if value > 0)


def rows_of(maps: Tensor, columns: int) -> Tensor:
    """Return maps (B, a*columns, h, w) as rows (B, h*w*a, columns), in the order of their priors."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, columns)


def gather_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return rows (B, N, D) of `values` (B, A, D); `rows` (B, N) int64."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))


def clip_to(bboxes: Tensor, clip_hw: Tensor, inset: float = 0.0) -> Tensor:
    """Clip `bboxes` (B, N, 4) xyxy to `clip_hw` (B or 1, 2), minus `inset` right and below, in pixels."""
    upper = torch.cat([clip_hw[:, 1:], clip_hw[:, :1]], dim=1).repeat(1, 2)[:, None]
    if inset:
        upper = upper - inset
    return torch.minimum(bboxes.clamp(min=0), upper)


@dataclasses.dataclass(frozen=True)
class Suppression:
    """Greedy suppression within labels, then the best `max_per_img` in descending score order.

    Attributes:
        iou_threshold: a larger overlap suppresses.
        max_per_img: most results of an image; -1: no limit.
        class_agnostic: boxes suppress boxes of other labels.
        suppresses: False only chooses the best `max_per_img`; ignored with `soft`.
        inverted: some boxes may end before they begin; these take no part in the suppression, as upstream.
        cap: most boxes that enter, the best by score; 0: all. With a cap every shape is constant, in standard
            operators.
        trimmed: cut off rows behind the largest count of the batch; else there are `max_per_img` rows
            (without `soft`: N at most). Ignored with a cap.
        soft: settings of soft NMS; not with a cap.
        plugin_classes: number of classes if TensorRT's plug-in suppresses, else 0; with a cap.
        rotated: boxes are turned and in descending order of scores; without `cap`, `soft` and `inverted`.
    """

    iou_threshold: float
    max_per_img: int
    class_agnostic: bool = False
    suppresses: bool = True
    inverted: bool = False
    cap: int = 0
    trimmed: bool = True
    soft: NmsConfig | None = None
    rotated: bool = False
    plugin_classes: int = 0

    def __call__(
        self,
        bboxes: Tensor,
        scores: Tensor,
        labels: Tensor,
        candidates: Tensor,
        results: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        results = bboxes if results is None else results
        if self.cap:
            return self._capped(bboxes, scores, labels, candidates, results)
        if self.soft is not None:
            soft, separated = self.soft, self._separated(bboxes, labels, candidates)
            rows, best = SOFT_NMS[soft.method](
                separated, scores, self.max_per_img, self.iou_threshold, soft.sigma, soft.min_score
            )
        else:
            keep = self._keep(bboxes, scores, labels, candidates)
            scores = torch.where(keep, scores, torch.full_like(scores, NO_CANDIDATE))
            best, rows = scores.topk(limit(self.max_per_img, scores.shape[1]), dim=1)
        if self.trimmed:
            count = (best > NO_CANDIDATE).sum(dim=1).max()
            best, rows = best[:, :count], rows[:, :count]
        return _padded(results, best, labels, rows)

    def _separated(self, bboxes: Tensor, labels: Tensor, candidates: Tensor) -> Tensor:
        if self.class_agnostic:
            return bboxes
        return (rotated_class_offsets if self.rotated else class_offsets)(bboxes, labels, candidates)

    def _keep(self, bboxes: Tensor, scores: Tensor, labels: Tensor, candidates: Tensor) -> Tensor:
        if not self.suppresses:
            return candidates
        separated = self._separated(bboxes, labels, candidates)
        if self.rotated:
            return rotated_keep(separated, candidates, self.iou_threshold)
        if self.inverted:  # the operator would put their corners in order
            low, high = separated[..., :2], separated[..., 2:]
            separated = torch.cat([low, torch.maximum(low, high)], dim=2)
        max_output = self.max_per_img if self.max_per_img > 0 else 2**31 - 1
        grouped = scores[:, None]
        if self.max_per_img <= 0 and not self.class_agnostic:
            groups = torch.arange(GROUPS, device=labels.device)[None, :, None]
            grouped = torch.where(labels[:, None] % GROUPS == groups, grouped, NO_CANDIDATE)
        return batched_keep(separated, scores, grouped, self.iou_threshold, max_output)

    def _capped(
        self, bboxes: Tensor, scores: Tensor, labels: Tensor, candidates: Tensor, results: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        best, rows = scores.topk(self.cap, dim=1)
        if self.plugin_classes:
            return *self._by_plugin(bboxes, best, labels, rows), candidates.sum(dim=1)
        separated = self._separated(bboxes, labels, candidates)
        if self.suppresses:
            keep = nms_of_sorted(gather_rows(separated, rows), self.iou_threshold)
            best = torch.where(keep, best, torch.full_like(best, NO_CANDIDATE))
        best, order = best.topk(capped(self.cap, self.max_per_img), dim=1)
        rows = rows.gather(1, order)
        return *_padded(results, best, labels, rows), candidates.sum(dim=1)

    def _by_plugin(self, bboxes: Tensor, best: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.inverted or not self.suppresses:
            raise UsageError("--nms-plugin: this model's NMS differs from the plug-in's; omit the option")
        classes = torch.arange(self.plugin_classes, device=labels.device)
        chosen = (labels.gather(1, rows)[..., None] == classes) & (best > NO_CANDIDATE)[..., None]
        scores = torch.where(chosen, best[..., None], 0.0)
        most = capped(self.cap, self.max_per_img)
        count, bboxes, best, labels = efficient_nms(
            gather_rows(bboxes, rows), scores, self.iou_threshold, most, self.class_agnostic
        )
        present = torch.arange(most, device=labels.device) < count
        return torch.cat([bboxes, best[..., None]], dim=2), torch.where(present, labels.to(torch.int64), -1)


def _padded(results: Tensor, best: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    results, labels = gather_rows(results, rows), labels.gather(1, rows)
    present = best > NO_CANDIDATE
    dets = torch.cat([results, best[..., None]], dim=2)
    dets = torch.where(present[..., None], dets, torch.zeros_like(dets))
    return dets, torch.where(present, labels, torch.full_like(labels, -1))


def limit(count: int, available: torch.Tensor | int) -> torch.Tensor | int:
    """Return min(count, available); a negative count is no limit."""
    if count < 0:
        return available
    if isinstance(available, torch.Tensor):
        return torch.minimum(torch.tensor(count), available)
    return torch.sym_min(count, available)
