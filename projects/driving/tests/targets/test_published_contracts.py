"""Every contract of another program is exported at the size of a published model (make test-matrix)."""

from pathlib import Path

import pytest

from mmdeploy_ext.cli import check_app, export_app, synthetic_app, verify_app
from mmdeploy_ext.spec.registry import registered
from toy_atss import REPO

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(3600)]
PUBLISHED = {
    ('centerpoint', 'autoware'): 'Autoware/centerpoint_pillar032_nus',
    ('streampetr', 'autoware'): 'StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e',
    ('streampetr', 'fork'): 'StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e',
    ('bevformer', 'autoware'): 'BEVFormer/bevformer_tiny',
    ('bevformer', 'trt-plugin'): 'BEVFormer/bevformer_tiny',
    ('bevfusion_det', 'autoware'): 'BEVFusion/bevfusion_lidar_transfusion_nus',
    ('bevfusion_det', 'cuda-bevfusion'): 'BEVFusion/bevfusion_camera_lidar_r50_nus',
    ('bevdet', 'autoware'): 'BEVDet/bevdet_r50_4dlongterm_depth_cbgs',
    ('bevdet', 'bevdet-cpp'): 'BEVDet/bevdet_r50_4dlongterm_depth_cbgs',
    ('bevdet', 'trt-plugin'): 'BEVDet/bevdet_r50',
    ('petrv2', 'dl4agx'): 'PETR/petrv2_vovnet_gridmask_p4_800x320',
    ('sparse4d', 'deploy'): 'Sparse4D/sparse4dv3_temporal_r50_1x8_bs6_256x704',
}
"""(family, contract) -> config in projects/configs."""


def run(app, *words):
    return app.main(list(map(str, words)))


def exported(family, contract, folder, capsys):
    config = REPO / f'projects/configs/{PUBLISHED[family, contract]}.py'
    weights, out = folder / 'k.pth', folder / ('m.onnx' if contract == 'fork' else 'out')
    assert run(synthetic_app, 'weights', config, weights) == 0
    words = ['--contract', contract, '--output-file', out]
    assert run(export_app, config, weights, *words) == 0, capsys.readouterr()
    return config, weights, out


def test_every_contract_of_a_program_is_here():
    stated = {(name, contract) for name, entry in registered().items() for contract in entry.contracts}
    assert stated - {('petr', 'dl4agx')} == PUBLISHED.keys()


@pytest.mark.parametrize(('family', 'contract'), PUBLISHED)
def test_a_published_model_is_exported_and_its_folder_taken(family, contract, tmp_path, capsys):
    _, _, out = exported(family, contract, tmp_path, capsys)
    if contract == 'autoware':
        assert run(check_app, out) == 0, capsys.readouterr()


def test_the_published_bevdet_is_proven_for_autoware(tmp_path, capsys):
    paths = exported('bevdet', 'autoware', Path(tmp_path), capsys)
    assert run(verify_app, *paths, '--frames', 3) == 0, capsys.readouterr()
