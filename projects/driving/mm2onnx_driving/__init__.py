"""Driving systems as families of mm2onnx.

Importing it registers the families, without PyTorch, mmcv or mmdet3d.
"""

import importlib
from pathlib import Path

from mmdeploy_ext.base import source_code
from mmdeploy_ext.spec.registry import register_models

SYSTEMS = (
    'bevdet', 'bevformer', 'bevfusion', 'flashocc', 'petr', 'sparse4d', 'sparsedrive', 'streampetr', 'vad',
)  # fmt: skip

source_code.PROJECTS.append(Path(__file__).resolve().parent)
source_code.is_ours.cache_clear()
register_models(f'{__name__}.layers')
for name in SYSTEMS:
    importlib.import_module(f'{__name__}.{name}')
    register_models(f'{__name__}.{name}')
