"""A range or voxel size of a coder that differs from the voxels' own is told, as PyTorch is as wrong."""

import pytest

from mmdeploy_ext.base.config import disagreements, load_config
from toy_centerpoint import write_config

CODER = 'model.pts_bbox_head.bbox_coder'


@pytest.mark.parametrize(
    ('key', 'value', 'named'),
    [
        (f'{CODER}.pc_range', [-50.0, -50.0], ['pc_range [-50.0, -50.0]', 'point_cloud_range']),
        (f'{CODER}.voxel_size', [0.3, 0.3], ['voxel_size [0.3, 0.3]', 'voxel_layer']),
        ('model.train_cfg.pts.point_cloud_range', [0, 0, 0, 1, 1, 1], []),
    ],
)
def test_two_ranges_or_voxel_sizes_of_a_model_are_both_named(key, value, named, tmp_path):
    cfg = load_config(str(write_config(tmp_path)))
    assert not disagreements(cfg)
    cfg.merge_from_dict({key: value})
    found = disagreements(cfg)
    assert len(found) == bool(named) and all(word in found[0] for word in named)
