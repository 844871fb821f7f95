"""The box convention of a model: mmdet3d 0.17 or 1.x."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.common.detector_parts import part_cfg
from mmdeploy_ext.families.common.options import CONVENTIONS
from mmdeploy_ext.upstream.models.conditional_detr import QueryBoxCoder
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint

CODER = 'NMSFreeCoder'
OLD_DIRECTION = dict(dir_offset=0.0, dir_limit_offset=1.0)
"""Defaults of `Anchor3DHead` of mmdet3d 0.17.2; 1.x has -pi / 2 and 0."""
OLD_SIZES = [[1.6, 3.9, 1.56]]
"""Default of 0.17.2's anchor generators; 1.x has [[3.9, 1.6, 1.56]]."""


def stated(cfg: Any, key: str, choices: Sequence[str]) -> str:
    """Return a top-level key of a config, one of `choices`, or ''."""
    value = cfg.get(key, '')
    if value not in ('', *choices):
        raise ConfigError(f'{cfg.filename}: {key}={value!r}, expected {" or ".join(map(repr, choices))}')
    return value


def check_coder(model: nn.Module, cfg: Any, needed: str = CODER) -> None:
    coder = (part_cfg(cfg.model, 'pts_bbox_head').get('bbox_coder') or {}).get('type')
    if coder != needed and isinstance(model.pts_bbox_head.bbox_coder, QueryBoxCoder):
        raise ConfigError(
            f'{cfg.filename}: model.pts_bbox_head.bbox_coder.type={coder!r}; expected {needed}, or your '
            'own head with its own coder, loaded by custom_imports'
        )


def state_convention(model: nn.Module, cfg: Any, default: str) -> None:
    boxes = stated(cfg, 'box_convention', CONVENTIONS)
    model.box_convention, model.states_boxes = boxes or default, bool(boxes)


def note_convention(model: nn.Module, checkpoint: Checkpoint) -> None:
    version = str(checkpoint.meta.get('mmdet3d_version') or '')
    if version and not model.states_boxes:
        model.box_convention = CONVENTIONS[0 if version.startswith('0.') else 1]


def state_head_convention(model: nn.Module, cfg: Any, head: str) -> None:
    """State the convention of a model with a head of anchors or centres, `cfg.model[head]`."""
    state_convention(model, cfg, CONVENTIONS[1])
    settings = cfg.model[head]
    generator = settings.get('anchor_generator') or {}
    model.old_defaults = {key: value for key, value in OLD_DIRECTION.items() if key not in settings}
    if generator and 'sizes' not in generator:
        model.old_defaults['sizes'] = OLD_SIZES


def note_head_convention(model: nn.Module, checkpoint: Checkpoint, head: nn.Module) -> None:
    """Note the convention of a checkpoint, and give a head of 0.x the defaults of 0.x."""
    note_convention(model, checkpoint)
    if model.box_convention == CONVENTIONS[0]:
        for key, value in model.old_defaults.items():
            owner = head if hasattr(head, key) else getattr(head, 'anchor_generator', None)
            if hasattr(owner, key):
                setattr(owner, key, value)


def with_heights(encoder: nn.Module, name: str, checkpoint: Checkpoint) -> Checkpoint:
    """Fit pillars of mmdet3d 0.x, which measure no height from their centre, to 1.x.

    `name` is the encoder's in the checkpoint. The height gets zeros as weights. With `legacy` 1.x puts it in
    the place of z, so that it is measured from 0.
    """
    layers = encoder.pfn_layers
    inner, built = next(entry for entry in layers.named_parameters() if entry[1].dim() == 2)
    key = f'{name}.pfn_layers.{inner}'
    weight = checkpoint.state_dict.get(key)
    if weight is None or not encoder._with_voxel_center or weight.shape[1] != built.shape[1] - 1:
        return checkpoint
    encoder.z_offset = 0.0
    place = weight.shape[1] - int(encoder._with_distance)
    columns = [weight[:, :place], torch.zeros_like(weight[:, :1]), weight[:, place:]]
    return dataclasses.replace(checkpoint, state_dict={**checkpoint.state_dict, key: torch.cat(columns, 1)})
