"""The post-processing of a family outside of its graphs: its `runtime`, and the tool that runs it.

`families/<family>/runtime` of a family of images has `detections(metadata, outputs, feeds)`, which returns
results per image of what a file gave by name and was fed, and `RUNNERS`: form of a file -> the tool that
draws its results. That of a family of frames or sweeps has `OPENS`, the class that runs the files of an
export. Where one of these graphs is fed by the others and has the layers that `quantize.py` puts in INT8,
`QUANTISED` is its name, and `feeds` of the class returns its inputs for a sample.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mmdeploy_ext.families import RUNTIME_MODULES

if TYPE_CHECKING:
    from types import ModuleType


def runtime_of(family: str) -> ModuleType | None:
    """Return the module of a family; None where there is none."""
    module = RUNTIME_MODULES.get(family)
    return importlib.import_module(module) if module else None


def runner_of(family: str, form: str) -> str:
    """Return the tool that draws what a file finds in pictures; '' where there is none."""
    return getattr(runtime_of(family), 'RUNNERS', {}).get(form, '')
