"""Heads in families of other packages: facts, coders and numpy post-processing."""

from mmdeploy_ext.families.common.runtime.dense import (
    decode_raw,
    largest_num_candidates,
    level_shapes,
    rows_per_level,
)
from mmdeploy_ext.runtime.bird_eye import intersection_areas, rotated_nms
from mmdeploy_ext.runtime.box_coders import Coder, Delta, class_scores, constant
from mmdeploy_ext.runtime.dense_facts import DenseFacts, Head
from mmdeploy_ext.spec.facts import NmsConfig

__all__ = [
    'Coder', 'Delta', 'DenseFacts', 'Head', 'NmsConfig', 'class_scores', 'constant', 'decode_raw',
    'intersection_areas', 'largest_num_candidates', 'level_shapes', 'rotated_nms', 'rows_per_level',
]  # fmt: skip
