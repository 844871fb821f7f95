"""Monocular 3D detectors of mmdet3d: FCOS3D, PGD, SMOKE."""

from mmdeploy_ext.spec.registry import register_family

register_family(
    'monocular',
    'mmdeploy_ext.families.monocular.family:PointsFamily',
    facts='mmdeploy_ext.families.monocular.facts:PointsFacts',
    runtime='mmdeploy_ext.families.monocular.runtime.fcos3d',
    library='mmdet3d',
    claims=('FCOSMono3DHead',),
    exports='FCOS3D and PGD (docs/models-cameras.md)',
    similar_names=('Mono3D', 'FCOS3D', 'PGD', 'SMOKE', 'MonoFlex'),
)
register_family(
    'smoke',
    'mmdeploy_ext.families.monocular.family:SmokeFamily',
    facts='mmdeploy_ext.families.monocular.facts:SmokeFacts',
    runtime='mmdeploy_ext.families.monocular.runtime.smoke',
    library='mmdet3d',
    claims=('SMOKEMono3DHead',),
    exports='SMOKE (docs/models-cameras.md)',
    similar_names=('Mono3D', 'FCOS3D', 'PGD', 'SMOKE', 'MonoFlex'),
)
