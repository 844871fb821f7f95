"""Options of models of frames and sweeps."""

import dataclasses

from mmdeploy_ext.contract import options
from mmdeploy_ext.contract.option import Option

GROUP = 'multi-camera models (StreamPETR)'
AUTOWARE = 'autoware'
CONTRACT = dataclasses.replace(
    options.CONTRACT,
    default='deploy',
    help='deploy: three graphs, state in the last LiDAR frame (default); fork: the one graph of the '
    "StreamPETR deployment fork; autoware: the three files that Autoware's camera_streampetr loads, of the "
    'last decoder layer',
    choices=('deploy', 'fork', AUTOWARE),
    fixes={AUTOWARE: dict(precision='fp32')},
)
FORK_VERSION = Option(
    'fork_version',
    '1.0',
    "the fork's branch: 1.0 has 12 inputs with absolute time (default), 1.1 has 11 with ages",
    ('1.0', '1.1'),
    key='fork_version',
    only_with=('contract', 'fork'),
    stated=True,
    group=GROUP,
)
FORK_IMG2LIDAR = Option(
    'fork_img2lidar',
    'token',
    'matrices per token (default), or per token and depth bin',
    ('token', 'depth'),
    key='fork_img2lidar',
    only_with=('contract', 'fork'),
    stated=True,
    group=GROUP,
)
LAYERS = Option(
    'layers',
    'all',
    'decoder layers in the outputs (default: all)',
    ('all', 'last'),
    key='layers',
    stated=True,
    group=GROUP,
)
NODE_IMAGES = Option(
    'node_images',
    'bgr',
    'planes of the pictures that the node feeds: bgr up to 0.51.0 (default), rgb after pull request 13167',
    ('bgr', 'rgb'),
    key='node_images',
    only_with=('contract', AUTOWARE),
    group=GROUP,
)
OPTIONS = (CONTRACT, FORK_VERSION, FORK_IMG2LIDAR, LAYERS, NODE_IMAGES)
