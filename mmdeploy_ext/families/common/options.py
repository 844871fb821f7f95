"""Options that several families declare."""

import dataclasses

from mmdeploy_ext.spec import options
from mmdeploy_ext.spec.options import Option

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
    'full form: paste masks in the graph at the size of the original image (default: masks are '
    'relative to the box)',
    key='paste_masks',
    only_with=('form', 'full'),
    group=options.OF_SOME,
)

# --- models of frames of several cameras, and LiDAR detectors with a dense head -------------------------

CONVENTIONS = '0.17', '1.x'
"""mmdet3d versions by box convention.

0.17: w, l, h and yaw from -y clockwise; 1.x: l, w, h and yaw from x counter-clockwise.
"""
LAYERS = Option(
    'layers',
    'all',
    'decoder layers in the outputs (default: all)',
    ('all', 'last'),
    key='layers',
    stated=True,
    group=options.CONTRACT.group,
)
LIDAR_OPTIONS = (
    dataclasses.replace(
        options.own_contract('deploy', 'two graphs, points to boxes'),
        hint='export_scn.py writes the sparse backbone for other engines',
    ),
    dataclasses.replace(options.SPARSE_FORM, only_with=('contract', 'deploy')),
)
