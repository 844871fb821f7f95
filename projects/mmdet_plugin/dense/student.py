"""Detectors that train with a second model, the teacher, which inference does not use."""

from typing import Any


def without_teacher(model_cfg: Any) -> Any:
    """Return the `model` of a distilled detector (LD, LAD) as its student alone; others as they are.

    Of a teacher nothing is read: its config is a path of the working directory, its checkpoint a URL.
    """
    if not any(key.startswith('teacher') for key in model_cfg):
        return model_cfg
    others = {key: value for key, value in model_cfg.items() if 'teacher' not in key}
    return type(model_cfg)(others | dict(type='SingleStageDetector'))
