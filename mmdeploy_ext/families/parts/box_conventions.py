"""The convention of boxes that a model of queries was trained with: that of mmdet3d 0.17, or of 1.x.

A config may state it (`box_convention`), else the version of mmdet3d in a checkpoint does; published weights
without either are of 0.17. In 0.17 a box has width, length, height and a yaw from -y clockwise, in 1.x
length, width, height and a yaw from x counter-clockwise; `CONVENTIONS` are '0.17' and '1.x'.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.parts.detector_parts import part_cfg
from mmdeploy_ext.families.parts.options import CONVENTIONS
from mmdeploy_ext.models.query_boxes import QueryBoxCoder
from mmdeploy_ext.weights.checkpoint import Checkpoint

CODER = 'NMSFreeCoder'
"""Type of the box coder that this package's heads have, whatever a config names."""


def stated(cfg: Any, key: str, choices: Sequence[str]) -> str:
    """Return the value of a key at the top of a config, one of `choices`; '' if it lacks the key.

    ConfigError: the value is none of the choices and not ''.
    """
    value = cfg.get(key, '')
    if value not in ('', *choices):
        raise ConfigError(f'{cfg.filename}: {key}={value!r}, expected {" or ".join(map(repr, choices))}')
    return value


def state_convention(model: nn.Module, cfg: Any) -> None:
    """Set two attributes of a model that was built of a config, in place.

    They are `box_convention`, one of `CONVENTIONS`, the first if the config has no key of that name, and
    `states_boxes`, whether the config has one that is not ''. ConfigError: the value of the key is another,
    or the head has this package's box coder and the config names none, or one that is not `CODER`.
    """
    coder = (part_cfg(cfg.model, 'pts_bbox_head').get('bbox_coder') or {}).get('type')
    if coder != CODER and isinstance(model.pts_bbox_head.bbox_coder, QueryBoxCoder):
        raise ConfigError(
            f'{cfg.filename}: model.pts_bbox_head.bbox_coder.type={coder!r}; expected {CODER}, or a head of '
            f'your own code that builds it, by custom_imports'
        )
    boxes = stated(cfg, 'box_convention', CONVENTIONS)
    model.box_convention, model.states_boxes = boxes or CONVENTIONS[0], bool(boxes)


def note_convention(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Set `box_convention` of a model by the version in a checkpoint, unless the config states it.

    The version is `mmdet3d_version` of the checkpoint's `meta`, a dict: of 0.x it is '0.17', of others '1.x';
    without one the convention stays.
    `model` is one that `state_convention` has set.
    """
    version = str(checkpoint.meta.get('mmdet3d_version') or '')
    if version and not model.states_boxes:
        model.box_convention = CONVENTIONS[0 if version.startswith('0.') else 1]
