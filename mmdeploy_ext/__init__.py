"""mm2onnx: OpenMMLab 1.x detectors as ONNX models, with the proof that they are the same models.

What is public is `__all__` and `compat.apply`; a name is imported when it is first used, so that what
runs without PyTorch does not import it.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from mmdeploy_ext import moved

if TYPE_CHECKING:
    from mmdeploy_ext.api import export, prove
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.proving.modules import prove_module
    from mmdeploy_ext.proving.parts.proof import export_parts
    from mmdeploy_ext.proving.parts.swap import with_parts
    from mmdeploy_ext.runtime.detect import open_model
    from mmdeploy_ext.spec.registry import register_family

os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')  # ONNX Runtime reads it when it is imported

__version__ = '0.4.0.dev0'
__all__ = [
    'Family',
    'export',
    'export_parts',
    'open_model',
    'prove',
    'prove_module',
    'register_family',
    'with_parts',
]

_MODULES = {
    'Family': 'mmdeploy_ext.families.base',
    'export': 'mmdeploy_ext.api',
    'export_parts': 'mmdeploy_ext.proving.parts.proof',
    'open_model': 'mmdeploy_ext.runtime.detect',
    'prove': 'mmdeploy_ext.api',
    'prove_module': 'mmdeploy_ext.proving.modules',
    'register_family': 'mmdeploy_ext.spec.registry',
    'with_parts': 'mmdeploy_ext.proving.parts.swap',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no {name!r}; public are {", ".join(__all__)}')
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, '__version__']


sys.meta_path.insert(0, moved.Kept)
sys.meta_path.append(moved.Finder)
