"""BEVDet4D's toy over a small generated data set: the test loop by both engines, `mm2onnx run` and INT8.

Whole runs of parts that the loops of BEVFormer and StreamPETR have in the suite: all of it is in the matrix.
"""

import pytest

import toy_nuscenes
from mmdeploy_ext.cli import quantize_app, run_app
from mmdeploy_ext.core.files import read_json
from mmdeploy_ext.seeded.weights import write_seeded
from toy_atss import REPO

pytestmark = pytest.mark.matrix
CONFIG = str(REPO / 'projects/configs/BEVDet/bevdet_toy.py')
PTH, ONNX = (CONFIG.replace('.py', f'_{name}.py') for name in ('pth', 'onnx'))
SCENES, FRAMES = 2, 4


@pytest.fixture(scope='module')
def infos(tmp_path_factory):
    root = toy_nuscenes.write(
        tmp_path_factory.mktemp('data'), val_scenes=SCENES, frames=FRAMES, sweeps=0, drop_share=0
    )
    return root / toy_nuscenes.INFOS


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('toy') / 'toy.pth'
    write_seeded(CONFIG, str(path))
    return str(path)


@pytest.fixture(scope='module')
def work_dir(infos, checkpoint, tmp_path_factory):
    """The folder of a PyTorch run, which dumps its first frames, and of an ONNX run after it."""
    folder = tmp_path_factory.mktemp('run') / 'bevdet_toy'
    for config in (PTH, ONNX):
        assert toy_nuscenes.evaluate(config, checkpoint, infos, folder) == 0
    return folder


def test_metrics_are_equal_on_both_engines(work_dir):
    toy_nuscenes.assert_equal_scores(work_dir)


def test_infos_are_run(work_dir, infos, tmp_path):
    folder = next(work_dir.glob('*portable*'))
    assert (
        run_app.main([str(folder), str(infos), '--data-root', str(infos.parent), '--out', str(tmp_path)]) == 0
    )


def test_the_graph_is_quantised_on_a_drive(infos, work_dir, tmp_path):
    target, report = tmp_path / 'int8', tmp_path / 'report.json'
    files = next(work_dir.glob('*portable*'))
    words = [str(files), '--calibrate', str(infos), '--rounds=0', '--reduce-range']
    assert quantize_app.main([*words, '--output', str(target), '--json', str(report)]) == 0
    assert read_json(report)['layers'] >= 20
