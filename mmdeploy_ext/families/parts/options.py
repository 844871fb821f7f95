"""Options that several families declare."""

import dataclasses
import functools

from mmdeploy_ext.contract import options
from mmdeploy_ext.contract.options import Option

# --- graphs of images -----------------------------------------------------------------------------------

GRID_SAMPLE = Option(
    'grid_sample',
    'operator',
    'gather replaces GridSample for engines that get it wrong (TensorRT 10.14 to 11.1)',
    ('operator', 'gather'),
    key='grid_sample',
    group=options.OF_SOME,
)
PASTE_MASKS = Option(
    'paste_masks',
    False,
    'full form: masks pasted in the graph, at the size of the original (default: in the frame of the box)',
    key='paste_masks',
    only_with=('form', 'full'),
    group=options.OF_SOME,
)

# --- models of frames of several cameras, and LiDAR detectors with a dense head -------------------------

CONVENTIONS = '0.17', '1.x'
"""Versions of mmdet3d by the boxes that models were trained with: width, length, height and yaw from -y
clockwise; length, width, height and yaw from x counter-clockwise."""
AUTOWARE = 'autoware'
"""Choice of `--contract`: the files that a node of Autoware loads."""
STREAM_GROUP = 'multi-camera models (StreamPETR)'
"""Heading of these options in the help text."""
STREAM_CONTRACT = dataclasses.replace(
    options.CONTRACT,
    default='deploy',
    help='deploy: three graphs, state in the last LiDAR frame (default); fork: the one graph of the '
    "StreamPETR deployment fork; autoware: the three files that Autoware's camera_streampetr loads, of the "
    'last decoder layer',
    choices=('deploy', 'fork', AUTOWARE),
    fixes={AUTOWARE: dict(precision='fp32')},
)
_FORK_OPTION = functools.partial(Option, only_with=('contract', 'fork'), stated=True, group=STREAM_GROUP)
FORK_VERSION = _FORK_OPTION(
    'fork_version',
    '1.0',
    "the fork's branch: 1.0 has 12 inputs with absolute time (default), 1.1 has 11 with ages",
    ('1.0', '1.1'),
    key='fork_version',
)
FORK_IMG2LIDAR = _FORK_OPTION(
    'fork_img2lidar',
    'token',
    'matrices per token (default), or per token and depth bin',
    ('token', 'depth'),
    key='fork_img2lidar',
)
LAYERS = Option(
    'layers',
    'all',
    'decoder layers in the outputs (default: all)',
    ('all', 'last'),
    key='layers',
    stated=True,
    group=STREAM_GROUP,
)
NODE_IMAGES = Option(
    'node_images',
    'bgr',
    'planes of the pictures that the node feeds: bgr up to 0.51.0 (default), rgb after pull request 13167',
    ('bgr', 'rgb'),
    key='node_images',
    only_with=('contract', AUTOWARE),
    group=STREAM_GROUP,
)
STREAM_OPTIONS = (STREAM_CONTRACT, FORK_VERSION, FORK_IMG2LIDAR, LAYERS, NODE_IMAGES)
"""Options of models with the contracts of `STREAM_CONTRACT`; other models of cameras have their own."""

EXPORT_SCN = 'export_scn.py writes the sparse backbone for other engines'
"""What the error about a wrong choice of a LiDAR detector says to do."""
LIDAR_CONTRACT = dataclasses.replace(
    options.CONTRACT,
    default='deploy',
    help="deploy: two graphs, points to boxes (default); autoware: the files that Autoware's "
    'lidar_centerpoint loads, of models with pillars',
    choices=('deploy', AUTOWARE),
    hint=EXPORT_SCN,
    fixes={AUTOWARE: dict(precision='fp32')},
)
LIDAR_OPTIONS = (
    LIDAR_CONTRACT,
    FORK_VERSION,
    FORK_IMG2LIDAR,
    dataclasses.replace(LAYERS, choices=LAYERS.choices[:1], hint=EXPORT_SCN),
    NODE_IMAGES,
    dataclasses.replace(options.SPARSE_FORM, only_with=('contract', 'deploy')),
)
"""Options of LiDAR detectors: those of streams, with the choices of LiDAR models, and of sparse backbones."""
