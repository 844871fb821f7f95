"""Parts of LiDAR models load their checkpoint as the whole model does."""

import pytest
import torch
from mmdet3d.models import CenterPoint
from mmdet3d.models.builder import DETECTORS

import toy_centerpoint
from mmdeploy_ext.proving.parts.export import read_model


@pytest.mark.matrix
def test_sparse_kernels_of_spconv_1_are_loaded(tmp_path):
    toy_centerpoint.register()
    config = toy_centerpoint.write_config(tmp_path)
    weights = read_model(config, '').build().state_dict()
    stored = {
        key: value.permute(1, 2, 3, 4, 0) if value.ndim == 5 else value for key, value in weights.items()
    }
    torch.save(dict(state_dict=stored), tmp_path / 'spconv1.pth')
    loaded = read_model(config, str(tmp_path / 'spconv1.pth')).pristine.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())


def test_a_users_lidar_detector_without_a_sparse_encoder_is_loaded(tmp_path):
    class OfPictures(CenterPoint):
        def __init__(self, **_):
            super().__init__()
            self.net = torch.nn.Linear(2, 2)

    DETECTORS.register_module(module=OfPictures, force=True)
    (tmp_path / 'user.py').write_text("model = dict(type='OfPictures')")
    weights = OfPictures().state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'user.pth')
    loaded = read_model(f'{tmp_path}/user.py', f'{tmp_path}/user.pth').pristine.state_dict()
    assert weights and all(torch.equal(loaded[key], value) for key, value in weights.items())
