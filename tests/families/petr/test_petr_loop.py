"""PETRv2's toy over a small generated data set: the test loop by both engines, `mm2onnx run`, film and INT8.

Whole runs of parts that the loops of BEVFormer and StreamPETR have in the suite: all of it is in the matrix.
"""

import pytest

import toy_nuscenes
import toy_petr_fitted
from mmdeploy_ext.cli import test_app
from mmdeploy_ext.core.files import read_json
from toy_atss import REPO
from toy_frames import PETRV2

pytestmark = pytest.mark.matrix
CONFIG = str(REPO / 'projects/configs/PETR/petrv2_toy.py')
PTH, ONNX = (CONFIG.replace('.py', f'_{name}.py') for name in ('pth', 'onnx'))
SCENES, FRAMES = 2, 5


@pytest.fixture(scope='module')
def infos(tmp_path_factory):
    root = toy_nuscenes.write(
        tmp_path_factory.mktemp('data'), val_scenes=SCENES, frames=FRAMES, sweeps=0, drop_share=0
    )
    return root / toy_nuscenes.INFOS


@pytest.fixture(scope='module')
def checkpoint(infos, tmp_path_factory):
    return PETRV2.write_fitted(toy_petr_fitted.fit, infos, infos.parent, tmp_path_factory.mktemp('toy'))


def evaluate(config, checkpoint, infos, work_dir, *options):
    words = [config, checkpoint, '--eval=bbox', '--work-dir', str(work_dir), '--cfg-options']
    data = [f'data.test.ann_file={infos}', f'data.test.data_root={infos.parent}/', 'data.workers_per_gpu=0']
    assert test_app.main([*words, *data, *options]) == 0


@pytest.fixture(scope='module')
def work_dir(infos, checkpoint, tmp_path_factory):
    """The folder of a PyTorch run, which dumps its first frames, and of an ONNX run after it."""
    folder = tmp_path_factory.mktemp('run') / 'petrv2_toy'
    evaluate(PTH, checkpoint, infos, folder)
    evaluate(ONNX, checkpoint, infos, folder)
    return folder


def metrics(folder, name):
    return read_json(folder / f'metrics_{name}.json')['metrics']


def test_nds_and_map_are_those_of_a_model_that_finds_and_equal_on_both_engines(work_dir):
    reference, candidate = metrics(work_dir, 'pth'), metrics(work_dir, 'onnx')
    assert reference['pts_bbox_NuScenes/NDS'] > 0.15 and reference['pts_bbox_NuScenes/mAP'] > 0.03
    assert reference.keys() == candidate.keys()
    for name in (name for name in reference if name.endswith(('NDS', 'mAP'))):
        assert abs(reference[name] - candidate[name]) <= 5e-4


def test_the_onnx_run_agrees_with_the_dump(infos, checkpoint, work_dir, capfd):
    evaluate(ONNX, checkpoint, infos, work_dir)
    assert ': agrees' in capfd.readouterr().out


def test_an_emptied_memory_changes_the_metrics(infos, checkpoint, work_dir, tmp_path):
    evaluate(PTH, checkpoint, infos, tmp_path, 'backend_config.memory=reset', 'backend_config.dump=None')
    assert metrics(tmp_path, 'pth') != metrics(work_dir, 'pth')
