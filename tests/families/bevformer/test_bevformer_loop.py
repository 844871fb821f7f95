"""BEVFormer's toy over a small generated data set: the test loop by both engines, and `mm2onnx run`."""

import pytest

import toy_nuscenes
from mmdeploy_ext.cli import run_app, test_app
from mmdeploy_ext.core.files import read_json
from toy_atss import REPO

CONFIG = str(REPO / 'projects/configs/BEVFormer/bevformer_toy.py')
PTH, ONNX = (CONFIG.replace('.py', f'_{name}.py') for name in ('pth', 'onnx'))
CHECKPOINT = str(REPO / 'demo/checkpoints/bevformer_toy.pth')
SCENES, FRAMES = 2, 2


@pytest.fixture(scope='module')
def infos(tmp_path_factory):
    """Infos of two scenes, which have no record of the CAN bus."""
    root = toy_nuscenes.write(tmp_path_factory.mktemp('data'), val_scenes=SCENES, frames=FRAMES)
    return root / toy_nuscenes.INFOS


def evaluate(config, infos, work_dir, *options):
    words = [config, CHECKPOINT, '--eval=bbox', '--work-dir', str(work_dir), '--cfg-options']
    data = [f'data.test.ann_file={infos}', f'data.test.data_root={infos.parent}/', 'data.workers_per_gpu=0']
    assert test_app.main([*words, *data, *options]) == 0


@pytest.fixture(scope='module')
def work_dir(infos, tmp_path_factory):
    """The folder of a PyTorch run, which dumps its first frames."""
    folder = tmp_path_factory.mktemp('run') / 'bevformer_toy'
    evaluate(PTH, infos, folder)
    return folder


@pytest.fixture(scope='module')
def exported(infos, work_dir):
    """The folder of the files that the ONNX run exported."""
    evaluate(ONNX, infos, work_dir)
    return work_dir / 'bevformer_toy_portable'


def metrics(folder, name):
    return read_json(folder / f'metrics_{name}.json')['metrics']


@pytest.mark.matrix
def test_nds_and_map_by_both_engines_are_equal(work_dir, exported):
    reference, candidate = metrics(work_dir, 'pth'), metrics(work_dir, 'onnx')
    assert reference.keys() == candidate.keys()
    scores = [name for name in reference if name.endswith(('NDS', 'mAP'))]
    assert len(scores) == 2
    assert all(abs(reference[name] - candidate[name]) <= 5e-4 for name in scores)


@pytest.mark.matrix  # in the suite: of StreamPETR (test_streaming_loop.py)
def test_the_onnx_run_agrees_with_the_dump(infos, work_dir, exported, capfd):
    evaluate(ONNX, infos, work_dir)
    out = capfd.readouterr().out
    assert out.count(': agrees') == 4 and 'up to date' in out


@pytest.mark.matrix  # in the suite: the memory of test_bevformer_export.py
def test_an_emptied_memory_changes_the_metrics(infos, work_dir, tmp_path):
    evaluate(PTH, infos, tmp_path, 'backend_config.memory=reset', 'backend_config.dump=None')
    assert metrics(tmp_path, 'pth') != metrics(work_dir, 'pth')


@pytest.mark.matrix
def test_run_draws_infos_and_says_what_stands_for_a_missing_record(infos, exported, tmp_path, capsys):
    out, found = tmp_path / 'drawn', tmp_path / 'found.json'
    words = [str(exported), str(infos), '--out', str(out), '--json', str(found)]
    assert run_app.main(words) == 0
    assert f'{SCENES * FRAMES} of {SCENES * FRAMES} frames have no can_bus' in capsys.readouterr().err
    assert len(list(out.glob('*.png'))) == len(read_json(found)['frames']) == SCENES * FRAMES
