"""Heads of regions for other packages: proposals, pooled features, mmdet's heads."""

from mmdeploy_ext.families.common.proposals import (
    Proposals,
    facts_of,
    generator_of,
    smallest_input,
    thresholds,
)
from mmdeploy_ext.families.common.regions import Pool, check_extractor, coder_of, part_of, stages_of

__all__ = [
    'Pool', 'Proposals', 'check_extractor', 'coder_of', 'facts_of', 'generator_of', 'part_of',
    'smallest_input', 'stages_of', 'thresholds',
]  # fmt: skip
