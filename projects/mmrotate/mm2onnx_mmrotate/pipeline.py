"""The test pipeline of mmrotate, as the steps of mmdet that it consists of."""

from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.core.config import keyed_test_pipeline
from mmdeploy_ext.families.images import PreprocessRule
from mmdeploy_ext.preprocess.pipeline_rule import rule_from_pipeline

STEPS = dict(RResize=dict(type='Resize', keep_ratio=True), RRandomFlip=dict(type='RandomFlip'))
"""Step of mmrotate -> the step of mmdet that it is derived from, whose picture is the same; only boxes of
training differ. `RResize` has no option for the ratio of the sides, and keeps it."""


def preprocess_rule(cfg: Any) -> PreprocessRule:
    """Read the rule out of a config's test pipeline; ConfigError names a step that cannot be expressed."""
    key, pipeline = keyed_test_pipeline(cfg)
    return rule_from_pipeline([_step_of_mmdet(step) for step in pipeline], key)


def _step_of_mmdet(step: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(step, **STEPS.get(step.get('type'), {}))
    settings.pop('version', None)
    if 'transforms' in settings:
        settings['transforms'] = [_step_of_mmdet(inner) for inner in settings['transforms']]
    return settings
