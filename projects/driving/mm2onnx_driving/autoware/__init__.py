"""Autoware's perception nodes without Autoware: the rules of their files, and their loops in numpy."""

from mmdeploy_ext.spec.registry import register_contract

register_contract(
    'centerpoint',
    'autoware',
    'mm2onnx_driving.autoware.centerpoint_export:CenterPointFiles',
    'mm2onnx_driving.autoware.centerpoint:AutowareCenterPoint',
    help="the files that Autoware's lidar_centerpoint loads, of models with pillars",
    fixes=dict(precision='fp32'),
    checks='mm2onnx_driving.autoware.check',
)
