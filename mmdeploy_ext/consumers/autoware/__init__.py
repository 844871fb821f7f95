"""Autoware's perception nodes without Autoware: the rules of their files, and their loops in numpy."""

from mmdeploy_ext.contract.options import CONTRACT, Option
from mmdeploy_ext.contract.registry import register_contract

NODE_IMAGES = Option(
    'node_images',
    'bgr',
    'planes of the pictures that the node feeds: bgr up to 0.51.0 (default), rgb after pull request 13167',
    ('bgr', 'rgb'),
    key='node_images',
    group=CONTRACT.group,
)
FP32 = dict(precision='fp32')
register_contract(
    'streampetr',
    'autoware',
    f'{__name__}.streampetr_export:StreamPetrFiles',
    f'{__name__}.streampetr:AutowareStreamPetr',
    help="the three files that Autoware's camera_streampetr loads, of the last decoder layer",
    fixes=FP32,
    options=(NODE_IMAGES,),
)
register_contract(
    'bevformer',
    'autoware',
    f'{__name__}.bevformer_export:BevFormerFiles',
    f'{__name__}.bevformer:AutowareBevFormer',
    help="the file that Autoware's tensorrt_bevformer loads, of plain operators",
    fixes=FP32,
)
register_contract(
    'centerpoint',
    'autoware',
    f'{__name__}.centerpoint_export:CenterPointFiles',
    f'{__name__}.centerpoint:AutowareCenterPoint',
    help="the files that Autoware's lidar_centerpoint loads, of models with pillars",
    fixes=FP32,
)
register_contract(
    'bevfusion_det',
    'autoware',
    f'{__name__}.bevfusion_export:BEVFusionFiles',
    f'{__name__}.bevfusion:AutowareBEVFusion',
    help="the file that Autoware's bevfusion loads, of models of LiDAR alone",
    fixes=FP32,
)
register_contract(
    'bevdet',
    'autoware',
    f'{__name__}.bevdet_export:BevDetFiles',
    'mmdeploy_ext.consumers.bevdet_plugins.cpp_loop:CppOnnx',
    help="the file that Autoware's tensorrt_bevdet loads, of BEVDepth4D; the node feeds no ego pose, so that "
    'past views are not moved',
    fixes=FP32,
)
