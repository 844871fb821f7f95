"""The contracts of other programs, as choices of `--contract` of our families."""

from mmdeploy_ext.contract.options import CONTRACT, Option
from mmdeploy_ext.contract.registry import register_contract
from mmdeploy_ext.families.catalogue import import_registrations

PLACE = 'mmdeploy_ext.consumers'
FORK_VERSION = Option(
    'fork_version',
    '1.0',
    "the fork's branch: 1.0 has 12 inputs with absolute time (default), 1.1 has 11 with ages",
    ('1.0', '1.1'),
    key='fork_version',
    stated=True,
    group=CONTRACT.group,
)
FORK_IMG2LIDAR = Option(
    'fork_img2lidar',
    'token',
    'matrices per token (default), or per token and depth bin',
    ('token', 'depth'),
    key='fork_img2lidar',
    stated=True,
    group=CONTRACT.group,
)
NODE_IMAGES = Option(
    'node_images',
    'bgr',
    'planes of the pictures that the node feeds: bgr up to 0.51.0 (default), rgb after pull request 13167',
    ('bgr', 'rgb'),
    key='node_images',
    group=CONTRACT.group,
)
FP32 = dict(precision='fp32')

import_registrations()  # a contract is one of a registered family
register_contract(
    'streampetr',
    'fork',
    f'{PLACE}.streampetr_fork.export:ForkFiles',
    f'{PLACE}.streampetr_fork.loop:ForkOnnx',
    help='the one graph of the StreamPETR deployment fork',
    options=(FORK_VERSION, FORK_IMG2LIDAR),
)
register_contract(
    'streampetr',
    'autoware',
    f'{PLACE}.autoware.streampetr_export:StreamPetrFiles',
    f'{PLACE}.autoware.streampetr:AutowareStreamPetr',
    help="the three files that Autoware's camera_streampetr loads, of the last decoder layer",
    fixes=FP32,
    options=(NODE_IMAGES,),
)
register_contract(
    'bevformer',
    'trt-plugin',
    f'{PLACE}.tensorrt_plugins.export:PluginFiles',
    f'{PLACE}.tensorrt_plugins.loop:PluginOnnx',
    help='the graph that TensorRT deployments of BEVFormer load, with their plug-ins',
    fixes=dict(precision='fp32', grid_sample='operator'),
)
register_contract(
    'bevformer',
    'autoware',
    f'{PLACE}.autoware.bevformer_export:BevFormerFiles',
    f'{PLACE}.autoware.bevformer:AutowareBevFormer',
    help="the file that Autoware's tensorrt_bevformer loads, of plain operators",
    fixes=FP32,
)
for petr, loop in dict(petr='PetrBound', petrv2='petrv2_bound').items():
    register_contract(
        petr,
        'dl4agx',
        f'{PLACE}.dl4agx.export:Dl4agxFiles',
        f'{PLACE}.dl4agx.loop:{loop}',
        help="the two graphs of NVIDIA's DL4AGX, whose caller computes the position embedding, and a third "
        'graph that does',
        fixes=FP32,
    )
register_contract(
    'sparse4d',
    'deploy',
    f'{PLACE}.sparseend2end.export:SparseEnd2EndFiles',
    f'{PLACE}.sparseend2end.loop:SparseEnd2EndOnnx',
    help="the backbone, the head of a first frame and that of the others, with the names of SparseEnd2End's "
    'files',
)
register_contract(
    'centerpoint',
    'autoware',
    f'{PLACE}.autoware.centerpoint_export:CenterPointFiles',
    f'{PLACE}.autoware.centerpoint:AutowareCenterPoint',
    help="the files that Autoware's lidar_centerpoint loads, of models with pillars",
    fixes=FP32,
)
register_contract(
    'bevfusion_det',
    'cuda-bevfusion',
    f'{PLACE}.cuda_bevfusion.export:CudaFiles',
    f'{PLACE}.cuda_bevfusion.loop:CudaBEVFusion',
    help="the files that NVIDIA's CUDA-BEVFusion loads, by its names and shapes",
    fixes=dict(opset=13, exporter='torchscript', precision='fp32'),
)
register_contract(
    'bevfusion_det',
    'autoware',
    f'{PLACE}.autoware.bevfusion_export:BEVFusionFiles',
    f'{PLACE}.autoware.bevfusion:AutowareBEVFusion',
    help="the file that Autoware's bevfusion loads, of models of LiDAR alone",
    fixes=FP32,
)
