"""Options of SOLO, SOLOv2 and Decoupled SOLO."""

from mmdeploy_ext.spec.options import MAX_CANDIDATES, OF_SOME, Option

LAYOUT = Option(
    'layout',
    'batched',
    'raw form: cells of all levels with a batch axis (default), or the outputs of the fork '
    'zhangjinsong3/SOLOv2.tensorRT',
    ('batched', 'fork'),
    only_with=('form', 'raw'),
    group=OF_SOME,
)
OPTIONS = (LAYOUT, MAX_CANDIDATES)
