from mmdeploy_ext.contract.options import CONTRACT, Option
from mmdeploy_ext.contract.registry import register_contract

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
    'fork',
    f'{__name__}.export:ForkFiles',
    f'{__name__}.loop:ForkOnnx',
    help='the one graph of the StreamPETR deployment fork',
    options=(VERSION, IMG2LIDAR),
)
