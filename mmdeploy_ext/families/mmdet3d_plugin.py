"""The 3D families of mm2onnx, their models and data sets: importing this registers them."""

import importlib

MODULES = (
    'mmdeploy_ext.families.sparse_backbone.family',
    'mmdeploy_ext.families.centerpoint.family',
    'mmdeploy_ext.families.anchor3d.family',
    'mmdeploy_ext.families.bevfusion.family',
    'mmdeploy_ext.families.streampetr.family',
    'mmdeploy_ext.models.mmdet3d',
)
"""Modules that register families and models, in the order in which messages and tables name them."""

for module in MODULES:
    importlib.import_module(module)
