"""The box convention of a query model: mmdet3d 0.17 or 1.x."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from mmdeploy_ext.families.common.detector_parts import part_cfg
from mmdeploy_ext.families.common.options import CONVENTIONS
from mmdeploy_ext.models.query_boxes import QueryBoxCoder
from mmdeploy_ext.util.errors import ConfigError
from mmdeploy_ext.weights.checkpoint import Checkpoint

CODER = 'NMSFreeCoder'


def stated(cfg: Any, key: str, choices: Sequence[str]) -> str:
    """Return a top-level key of a config, one of `choices`, or ''."""
    value = cfg.get(key, '')
    if value not in ('', *choices):
        raise ConfigError(f'{cfg.filename}: {key}={value!r}, expected {" or ".join(map(repr, choices))}')
    return value


def state_convention(model: nn.Module, cfg: Any) -> None:
    coder = (part_cfg(cfg.model, 'pts_bbox_head').get('bbox_coder') or {}).get('type')
    if coder != CODER and isinstance(model.pts_bbox_head.bbox_coder, QueryBoxCoder):
        raise ConfigError(
            f'{cfg.filename}: model.pts_bbox_head.bbox_coder.type={coder!r}; expected {CODER}, or a head of '
            f'your own code that builds it, by custom_imports'
        )
    boxes = stated(cfg, 'box_convention', CONVENTIONS)
    model.box_convention, model.states_boxes = boxes or CONVENTIONS[0], bool(boxes)


def note_convention(model: nn.Module, checkpoint: Checkpoint) -> None:
    version = str(checkpoint.meta.get('mmdet3d_version') or '')
    if version and not model.states_boxes:
        model.box_convention = CONVENTIONS[0 if version.startswith('0.') else 1]
