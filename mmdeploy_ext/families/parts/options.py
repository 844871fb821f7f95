"""Options of graphs of images that several families declare."""

from mmdeploy_ext.contract.option import Option
from mmdeploy_ext.contract.options import OF_SOME
from mmdeploy_ext.contract.values import FLAG

GRID_SAMPLE = Option(
    'grid_sample',
    'operator',
    'gather replaces GridSample for engines that get it wrong (TensorRT 10.14 to 11.1)',
    ('operator', 'gather'),
    key='grid_sample',
    group=OF_SOME,
)
PASTE_MASKS = Option(
    'paste_masks',
    False,
    'full form: masks pasted in the graph, at the size of the original (default: in the frame of the box)',
    schema=FLAG,
    key='paste_masks',
    only_with=('form', 'full'),
    group=OF_SOME,
)
