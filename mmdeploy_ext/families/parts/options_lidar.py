"""Options of LiDAR detectors with a dense head."""

import dataclasses

from mmdeploy_ext.contract import options
from mmdeploy_ext.families.parts import options_frames

AUTOWARE = 'autoware'
ONLY = 'export_scn.py writes the sparse backbone for other engines'
CONTRACTS = dataclasses.replace(
    options.CONTRACT,
    default='deploy',
    help="deploy: two graphs, points to boxes (default); autoware: the files that Autoware's "
    'lidar_centerpoint loads, of models with pillars',
    choices=('deploy', AUTOWARE),
    hint=ONLY,
    fixes={AUTOWARE: dict(precision='fp32')},
)
SPARSE_FORM = dataclasses.replace(options.SPARSE_FORM, only_with=('contract', 'deploy'))
_CHANGED = {
    'contract': CONTRACTS,
    'layers': dataclasses.replace(
        options_frames.LAYERS, choices=options_frames.LAYERS.choices[:1], hint=ONLY
    ),
}
OPTIONS = (*(_CHANGED.get(option.name, option) for option in options_frames.OPTIONS), SPARSE_FORM)
"""Those of streams, with the choices of LiDAR models, and the form of a sparse backbone."""
