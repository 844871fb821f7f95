"""The rules of seeded weights by family; imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

RULES = {
    'anchor3d': 'mmdeploy_ext.seeded.lidar:fill_lidar',
    'bevdet': 'mmdeploy_ext.seeded.bevdet:fill',
    'bevformer': 'mmdeploy_ext.seeded.bevformer:fill',
    'bevfusion_det': 'mmdeploy_ext.seeded.lidar:fill_fusion',
    'centerpoint': 'mmdeploy_ext.seeded.lidar:fill_lidar',
    'imvoxelnet': 'mmdeploy_ext.seeded.imvoxelnet:fill',
    'monocular': 'mmdeploy_ext.seeded.monocular:fill',
    'mvxnet': 'mmdeploy_ext.seeded.lidar:fill_point_fusion',
    'petr': 'mmdeploy_ext.seeded.petr:fill',
    'petrv2': 'mmdeploy_ext.seeded.petr:fill',
    'rtdetr': 'mmdeploy_ext.seeded.by_name:fill_rtdetr',
    'smoke': 'mmdeploy_ext.seeded.monocular:fill',
    'solo': 'mmdeploy_ext.seeded.by_name:fill_solo',
    'sparse4d': 'mmdeploy_ext.seeded.sparse4d:fill',
    'streampetr': 'mmdeploy_ext.seeded.by_name:fill_streampetr',
}
"""Family -> function of (new detector, config, family, seed) that fills and returns the detector."""


def rule_of(family: str) -> Callable[..., Any] | None:
    if family not in RULES:
        return None
    module, name = RULES[family].split(':')
    return getattr(import_module(module), name)
