"""BEVDet4D's toy over a small generated data set: the test loop by both engines, `mm2onnx run` and INT8.

Whole runs of parts that the loops of BEVFormer and StreamPETR have in the suite: all of it is in the matrix.
"""

import pytest

import toy_nuscenes
from mmdeploy_ext.cli import quantize_app, run_app, test_app
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


def evaluate(config, checkpoint, infos, work_dir, *options):
    words = [config, checkpoint, '--eval=bbox', '--work-dir', str(work_dir), '--cfg-options']
    data = [f'data.test.ann_file={infos}', f'data.test.data_root={infos.parent}/', 'data.workers_per_gpu=0']
    assert test_app.main([*words, *data, *options]) == 0


@pytest.fixture(scope='module')
def work_dir(infos, checkpoint, tmp_path_factory):
    """The folder of a PyTorch run, which dumps its first frames, and of an ONNX run after it."""
    folder = tmp_path_factory.mktemp('run') / 'bevdet_toy'
    evaluate(PTH, checkpoint, infos, folder)
    evaluate(ONNX, checkpoint, infos, folder)
    return folder


def metrics(folder, name):
    return read_json(folder / f'metrics_{name}.json')['metrics']


def test_metrics_are_equal_on_both_engines(work_dir):
    reference, candidate = metrics(work_dir, 'pth'), metrics(work_dir, 'onnx')
    assert reference.keys() == candidate.keys() and 'pts_bbox_NuScenes/NDS' in reference
    for name in (name for name in reference if name.endswith(('NDS', 'mAP'))):
        assert abs(reference[name] - candidate[name]) <= 5e-4


def test_infos_are_run(work_dir, infos, tmp_path):
    folder = next(work_dir.glob('*portable*'))
    assert (
        run_app.main([str(folder), str(infos), '--data-root', str(infos.parent), '--out', str(tmp_path)]) == 0
    )


def test_the_graph_is_quantised_on_a_drive(infos, work_dir, tmp_path):
    target, report = tmp_path / 'int8', tmp_path / 'report.json'
    words = [
        str(next(work_dir.glob('*portable*'))),
        '--calibrate',
        str(infos),
        '--rounds',
        '0',
        '--reduce-range',
    ]
    assert quantize_app.main([*words, '--output', str(target), '--json', str(report)]) == 0
    assert read_json(report)['layers'] >= 20
