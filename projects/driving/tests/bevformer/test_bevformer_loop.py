"""BEVFormer's toy over a small generated data set: the test loop by both engines, and `mm2onnx run`."""

import pytest

import toy_nuscenes
from mmdeploy_ext.base.files import read_json
from mmdeploy_ext.cli import run_app
from toy_atss import REPO

pytestmark = pytest.mark.matrix
CONFIG = str(REPO / 'projects/configs/BEVFormer/bevformer_toy.py')
CHECKPOINT = str(REPO / 'demo/checkpoints/bevformer_toy.pth')
SCENES, FRAMES = 2, 2


def test_metrics_by_both_engines_are_equal_and_run_says_what_stands_for_a_missing_record(tmp_path, capsys):
    root = toy_nuscenes.write(tmp_path / 'data', val_scenes=SCENES, frames=FRAMES)
    infos, work_dir = root / toy_nuscenes.INFOS, tmp_path / 'bevformer_toy'
    for engine in ('pth', 'onnx'):
        config = CONFIG.replace('.py', f'_{engine}.py')
        assert toy_nuscenes.evaluate(config, CHECKPOINT, infos, work_dir) == 0
    toy_nuscenes.assert_equal_scores(work_dir)

    out, found = tmp_path / 'drawn', tmp_path / 'found.json'
    words = [str(work_dir / 'bevformer_toy_portable'), str(infos), '--out', str(out), '--json', str(found)]
    capsys.readouterr()
    assert run_app.main(words) == 0
    assert 'can_bus' in capsys.readouterr().err
    assert len(list(out.glob('*.png'))) == len(read_json(found)['frames']) == SCENES * FRAMES
