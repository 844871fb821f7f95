"""CenterPoint: mmdet3d's own LiDAR detector, exported as a sparse backbone and a dense head."""

from mmdeploy_ext.contract.registry import register_family
from mmdeploy_ext.families.centerpoint.options import OPTIONS

register_family(
    'centerpoint',
    'mmdeploy_ext.families.centerpoint.family:CenterPointFamily',
    options=OPTIONS,
    facts='mmdeploy_ext.families.centerpoint.facts:CenterPointFacts',
    runtime='mmdeploy_ext.families.centerpoint.runtime',
    library='mmdet3d',
    claims=('CenterPoint',),
)
