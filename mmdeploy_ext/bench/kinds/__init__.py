"""The kind of a model's samples; only `kind_of` chooses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.bench.kinds.backbone import Backbones
from mmdeploy_ext.bench.kinds.images import Images
from mmdeploy_ext.bench.kinds.sequence import Sequences
from mmdeploy_ext.families.base import BACKBONE

if TYPE_CHECKING:
    from mmdeploy_ext.bench.kinds.base import Kind
    from mmdeploy_ext.families.base import Family

IMAGES, SEQUENCE, OF_BACKBONES = Images(), Sequences(), Backbones()


def kind_of(family: Family) -> Kind:
    if family.product == BACKBONE:
        return OF_BACKBONES
    return IMAGES if family.samples == 'images' else SEQUENCE
