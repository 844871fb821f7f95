"""The convention of boxes that a model of queries was trained with: that of mmdet3d 0.17, or of 1.x.

A config may state it (`box_convention`), else the version of mmdet3d in a checkpoint does; published weights
without either are of 0.17.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.parts.options import CONVENTIONS


def stated(cfg: Any, key: str, choices: Sequence[str]) -> str:
    """Return what a config says at a key about the training of its model; '' if it says nothing."""
    value = cfg.get(key, '')
    if value not in ('', *choices):
        raise ConfigError(f'{cfg.filename}: {key}={value!r}, expected {" or ".join(map(repr, choices))}')
    return value


def state_convention(model: nn.Module, cfg: Any) -> None:
    """Set `box_convention` of a model, one of `CONVENTIONS`, and `states_boxes`: the config has it."""
    boxes = stated(cfg, 'box_convention', CONVENTIONS)
    model.box_convention, model.states_boxes = boxes or CONVENTIONS[0], bool(boxes)


def note_convention(model: nn.Module, checkpoint: Any) -> None:
    """Set `box_convention` of a model by the version in a checkpoint, unless the config states it."""
    version = str(checkpoint.meta.get('mmdet3d_version', ''))
    if version and not model.states_boxes:
        model.box_convention = CONVENTIONS[0 if version.startswith('0.') else 1]
