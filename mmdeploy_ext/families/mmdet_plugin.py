"""The 2D families of mm2onnx and their models: importing this registers them."""

import importlib

MODULES = (
    'mmdeploy_ext.families.dense.family',
    'mmdeploy_ext.families.corner.family',
    'mmdeploy_ext.families.solo.family',
    'mmdeploy_ext.families.two_stage.family',
    'mmdeploy_ext.families.rtdetr.family',
    'mmdeploy_ext.families.query.family',
    'mmdeploy_ext.families.yolact.family',
    'mmdeploy_ext.families.parts.upstream_layers',
    'mmdeploy_ext.models',
)
"""Modules that register families and models, in the order in which messages and tables name them."""

for module in MODULES:
    importlib.import_module(module)
