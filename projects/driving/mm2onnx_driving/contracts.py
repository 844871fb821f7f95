"""Importing it registers the files of other programs: Autoware, DL4AGX, CUDA-BEVFusion, TensorRT plug-ins."""

import importlib.util

from mm2onnx_driving import SYSTEMS
from mm2onnx_driving import autoware as autoware

for name in SYSTEMS:
    targets = f'mm2onnx_driving.{name}.targets'
    if importlib.util.find_spec(targets):
        importlib.import_module(targets)
