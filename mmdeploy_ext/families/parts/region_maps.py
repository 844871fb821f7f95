"""Which maps regions are pooled from, and which heads look at them."""

from collections.abc import Sequence

import torch
from torch import nn

from mmdeploy_ext.families.parts.regions import context_maps, context_names, part_of, stages_of


def feature_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the maps that regions are pooled from, levels first."""
    roi_head = roi_head_of(model)
    if roi_head is None:
        return ()
    kinds = ('bbox', 'mask') if roi_head.with_mask else ('bbox',)
    pools = [
        part_of(roi_head, f'{kind}_roi_extractor', one)
        for kind in kinds
        for one in range(stages_of(roi_head))
    ]
    if grid_of(roi_head) is not None:
        pools.append(roi_head.grid_roi_extractor)
    levels = range(max(pool.num_inputs for pool in pools))
    return (*(f'features_{level}' for level in levels), *context_names(roi_head))


def region_maps(model: nn.Module, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the maps of `feature_names`, of all levels that the detector has."""
    roi_head = roi_head_of(model)
    if roi_head is None:
        return []
    count = len(feature_names(model)) - len(context_names(roi_head))
    return [*levels[:count], *context_maps(roi_head, levels)]


def roi_head_of(model: nn.Module) -> nn.Module | None:
    """Return the head of regions; None of a detector that gives its proposals."""
    return getattr(model, 'roi_head', None)


def has_masks(model: nn.Module) -> bool:
    """Return whether a detector gives masks of its boxes."""
    roi_head = roi_head_of(model)
    return roi_head is not None and bool(roi_head.with_mask)


def grid_of(roi_head: nn.Module) -> nn.Module | None:
    """Return the head that gives the maps of points, or None."""
    return getattr(roi_head, 'grid_head', None)
