"""The kind of a model's samples; only `kind_of` chooses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.kinds.backbone import Backbones
from mmdeploy_ext.kinds.images import Images
from mmdeploy_ext.kinds.sequence import Sequences

if TYPE_CHECKING:
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.kinds.base import Kind

IMAGES, SEQUENCE, OF_BACKBONES = Images(), Sequences(), Backbones()


def kind_of(family: Family) -> Kind:
    if family.product == BACKBONE:
        return OF_BACKBONES
    return IMAGES if family.samples == 'images' else SEQUENCE
