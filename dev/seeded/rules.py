"""The rules of seeded weights by family; imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

RULES = {
    'anchor3d': 'dev.seeded.lidar:fill_lidar',
    'bevdet': 'dev.seeded.bevdet:fill',
    'flashocc': 'dev.seeded.bevdet:fill_occupancy',
    'bevformer': 'dev.seeded.bevformer:fill',
    'bevfusion_det': 'dev.seeded.lidar:fill_fusion',
    'centerpoint': 'dev.seeded.lidar:fill_lidar',
    'imvoxelnet': 'dev.seeded.imvoxelnet:fill',
    'monocular': 'dev.seeded.monocular:fill',
    'mvxnet': 'dev.seeded.lidar:fill_point_fusion',
    'petr': 'dev.seeded.petr:fill',
    'petrv2': 'dev.seeded.petr:fill',
    'rtdetr': 'dev.seeded.by_name:fill_rtdetr',
    'smoke': 'dev.seeded.monocular:fill',
    'solo': 'dev.seeded.by_name:fill_solo',
    'sparse4d': 'dev.seeded.sparse4d:fill',
    'sparsedrive': 'dev.seeded.sparsedrive:fill',
    'streampetr': 'dev.seeded.by_name:fill_streampetr',
    'vad': 'dev.seeded.vad:fill',
}
"""Family -> function of (new detector, config, family, seed) that fills and returns the detector."""


def rule_of(family: str) -> Callable[..., Any] | None:
    if family not in RULES:
        return None
    module, name = RULES[family].split(':')
    return getattr(import_module(module), name)
