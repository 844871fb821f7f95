"""Programs that load StreamPETR's files."""

from mmdeploy_ext.spec.options import CONTRACT, Option
from mmdeploy_ext.spec.registry import register_contract

NODE_IMAGES = Option(
    'node_images',
    'bgr',
    "order of the node's image planes: bgr up to 0.51.0 (default), rgb after pull request 13167",
    ('bgr', 'rgb'),
    key='node_images',
    group=CONTRACT.group,
)
VERSION = Option(
    'fork_version',
    '1.0',
    "the fork's branch: 1.0 has 12 inputs with absolute time (default), 1.1 has 11 with ages",
    ('1.0', '1.1'),
    key='fork_version',
    stated=True,
    group=CONTRACT.group,
)
IMG2LIDAR = Option(
    'fork_img2lidar',
    'token',
    'matrices per token (default), or per token and depth bin',
    ('token', 'depth'),
    key='fork_img2lidar',
    stated=True,
    group=CONTRACT.group,
)
register_contract(
    'streampetr',
    'autoware',
    'mm2onnx_driving.streampetr.autoware:StreamPetrFiles',
    'mm2onnx_driving.streampetr.targets.autoware:AutowareStreamPetr',
    help="the three files that Autoware's camera_streampetr loads, with the last decoder layer only",
    fixes=dict(precision='fp32'),
    options=(NODE_IMAGES,),
    checks='mm2onnx_driving.autoware.check',
)
register_contract(
    'streampetr',
    'fork',
    'mm2onnx_driving.streampetr.fork:ForkFiles',
    'mm2onnx_driving.streampetr.targets.streampetr_fork:ForkOnnx',
    help='the single graph of the StreamPETR deployment fork',
    options=(VERSION, IMG2LIDAR),
)
