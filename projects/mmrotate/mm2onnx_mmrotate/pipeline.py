"""The test pipeline of mmrotate, as the steps of mmdet that it consists of."""

import copy
from typing import Any

STEPS = dict(RResize=dict(type='Resize', keep_ratio=True), RRandomFlip=dict(type='RandomFlip'))
"""Step of mmrotate -> the step of mmdet that it is derived from, whose picture is the same; only boxes of
training differ. `RResize` has no option for the ratio of the sides, and keeps it."""


def as_mmdet(cfg: Any) -> Any:
    """Return a copy of a config whose pipelines have the steps of mmdet."""
    cfg = copy.deepcopy(cfg)
    _rename(cfg.get('data'))
    _rename(cfg.get('test_pipeline'))
    return cfg


def _rename(content: Any) -> None:
    """Rename the steps inside of dicts and lists, in place."""
    if isinstance(content, dict):
        if content.get('type') in STEPS:
            content.update(STEPS[content['type']])
            content.pop('version', None)
        content = list(content.values())
    if isinstance(content, list | tuple):
        for inner in content:
            _rename(inner)
