"""Options of RT-DETR."""

from mmdeploy_ext.families.common.options import GRID_SAMPLE
from mmdeploy_ext.spec.options import OF_SOME, Option

FUSE = Option(
    'fuse',
    True,
    'merge the branches of RepVGG blocks into one convolution (default: yes)',
    group=OF_SOME,
)
DYNAMIC_BATCH = Option('dynamic_batch', False, 'dynamic batch, fixed size', group=OF_SOME)
OPTIONS = (FUSE, GRID_SAMPLE, DYNAMIC_BATCH)
