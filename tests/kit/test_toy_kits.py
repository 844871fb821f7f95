"""The script that writes kits of toys for another device: what it writes is equal on this machine, too."""

import pytest

import toy_kits
from mmdeploy_ext.cli import judge_app

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize(
    'name', ['fcos3d', 'smoke', 'atss_deformable_sampled', 'second', 'imvoxelnet', 'mvxnet']
)
def test_a_kit_of_a_toy_is_equal_here(tmp_path, name):
    assert toy_kits.main([str(tmp_path), name]) == 0
    kit, outputs = tmp_path / name / 'kit', tmp_path / 'outputs'
    assert judge_app.main([str(kit), str(outputs), '--run', 'onnxruntime']) == 0


def test_float16_of_a_kit_keeps_what_the_family_of_its_file_keeps(tmp_path):
    assert toy_kits.main([str(tmp_path), 'queryinst']) == 0
    words = [str(tmp_path / 'queryinst' / 'kit'), str(tmp_path / 'outputs'), '--run', 'onnxruntime']
    assert judge_app.main([*words, '--precision', 'fp16']) == 0  # with its regions in float16 88 % match
