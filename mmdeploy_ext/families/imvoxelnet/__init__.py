"""ImVoxelNet: 3D boxes of one picture, by voxels that sample its features."""

from mmdeploy_ext.spec.registry import register_family

register_family(
    'imvoxelnet',
    'mmdeploy_ext.families.imvoxelnet.family:ImVoxelNetFamily',
    facts='mmdeploy_ext.families.imvoxelnet.runtime:ImVoxelNetFacts',
    runtime='mmdeploy_ext.families.imvoxelnet.runtime',
    library='mmdet3d',
    claims=('ImVoxelNet',),
    exports='ImVoxelNet (docs/models-cameras.md)',
    similar_names=('ImVoxel',),
)
