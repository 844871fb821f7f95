"""StreamPETR: its options, and what its files tell `families/streampetr/runtime`."""

import dataclasses

from mmdeploy_ext.contract import options
from mmdeploy_ext.contract.option import Option
from mmdeploy_ext.contract.schema import maybe, number, open_record
from mmdeploy_ext.contract.values import COUNT, RANGE

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
POSTPROCESS = open_record(
    max_num=COUNT,
    post_center_range=RANGE,
    score_threshold=maybe(number()),
    num_classes=COUNT,
    memory_len=COUNT,
    topk_proposals=COUNT,
    num_propagated=number(0, 100_000, whole=True),
)
