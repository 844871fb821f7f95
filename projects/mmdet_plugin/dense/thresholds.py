"""What `test_cfg` decides about a dense head, as its own `get_bboxes` reads it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext.exporting.postprocess.nms_config import NmsConfig, nms_config
from projects.mmdet_plugin.dense.kinds import kind_of

if TYPE_CHECKING:
    from torch import nn


def thresholds(head: nn.Module) -> NmsConfig:
    """Return the thresholds of a head; what its `get_bboxes` does not look at limits nothing."""
    return dataclasses.replace(nms_config(head.test_cfg), **kind_of(head).fixed)
