"""Detectors of corners as mmdet runs them, unpatched."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmdeploy_ext.families.common.mmdet_reference import given_to
from mmdeploy_ext.families.corner.graphs import MAP_NAMES, last_level
from mmdeploy_ext.families.reference import ImageReference


class CornerReference(ImageReference):
    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        maps = given_to(self.model, tensors, MAP_NAMES)
        if not maps:
            return {}
        first_heat, first_offset, first_pairing, last_heat, last_offset, last_pairing = (
            [level] for level in maps.values()
        )
        outputs = first_heat, last_heat, first_pairing, last_pairing, first_offset, last_offset
        if not self.model.bbox_head.with_corner_emb:
            guides = [None], [None]
            outputs = first_heat, last_heat, first_offset, last_offset, *guides, first_pairing, last_pairing
        return {'extract_feat': None, 'bbox_head.forward': outputs}

    def borders(self) -> dict[str, Any]:
        def last(calls: list[Any]) -> dict[str, Any]:
            return dict(zip(MAP_NAMES, last_level(self.model.bbox_head, calls[0]), strict=True))

        return {'bbox_head.forward': last}
