"""The test loop, the export and the proof of a LiDAR detector without a memory, on a small generated set."""

import contextlib
import shutil

import pytest

import toy_nuscenes
from marking import in_suite
from mmdeploy_ext.cli import check_app, export_app, test_app
from mmdeploy_ext.core.dump import list_samples
from mmdeploy_ext.core.files import read_json
from toy_atss import REPO

FRAMES = 4
PRINTED = 'printed.txt'


def files(toy, folder):
    """Return the configs of a toy, as it is trained and for both engines, and its checkpoint."""
    config = REPO / 'projects/configs' / folder / toy
    configs = [f'{config}{engine}.py' for engine in ('', '_pth', '_onnx')]
    return *configs, str(REPO / f'demo/checkpoints/{toy}.pth')


CONFIG, PTH, ONNX, CHECKPOINT = files('centerpoint_toy', 'BEVFusion')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    root = toy_nuscenes.write(folder, val_scenes=1, frames=FRAMES, image_size=(32, 32))
    return [
        f'data.test.ann_file={root}/toy_nuscenes_infos_val.pkl',
        f'data.test.data_root={root}/',
        'data.workers_per_gpu=0',
    ]


def evaluate(config, work_dir, *options, checkpoint=CHECKPOINT):
    words = [config, checkpoint, '--eval=bbox', '--work-dir', str(work_dir), '--cfg-options', *options]
    return test_app.main(words)


@pytest.fixture(scope='module')
def runs(data, tmp_path_factory):
    """The folder of a PyTorch run with a dump of two sweeps and of an ONNX run, and what that prints."""
    work_dir = tmp_path_factory.mktemp('run') / 'centerpoint_toy'
    assert evaluate(PTH, work_dir, *data, 'backend_config.dump.frames=2') == 0
    with (work_dir / PRINTED).open('w') as printed, contextlib.redirect_stdout(printed):
        assert evaluate(ONNX, work_dir, *data) == 0
    return work_dir


def check_metrics(work_dir, least):
    names = ('pth', 'onnx')
    reference, candidate = (read_json(work_dir / f'metrics_{name}.json')['metrics'] for name in names)
    assert reference.keys() == candidate.keys()
    scores = [name for name in reference if name.endswith(('NDS', 'mAP'))]
    assert len(scores) == 2
    assert all(abs(reference[name] - candidate[name]) <= 5e-4 for name in scores)
    assert reference['pts_bbox_NuScenes/mAP'] >= least


def test_nds_and_map_by_both_engines_are_equal(runs):
    check_metrics(runs, 0.5)  # 0.811 on these four frames


@pytest.mark.matrix
@pytest.mark.parametrize(
    ('toy', 'folder', 'least'),
    in_suite(
        [('pointpillars_toy', 'PointPillars', 0.3), ('centerpoint_pillar_toy', 'Autoware', 0.05)],
        ('pointpillars_toy', 'PointPillars', 0.3),
    ),
)
def test_those_of_toys_with_pillars_are_equal_too(toy, folder, least, data, tmp_path):
    _, pth, onnx, checkpoint = files(toy, folder)
    for config in (pth, onnx):
        assert evaluate(config, tmp_path, *data, checkpoint=checkpoint) == 0
    check_metrics(tmp_path, least)


@pytest.mark.matrix
def test_the_toy_for_autoware_is_proven_through_the_nodes_loop(data, tmp_path, capsys):
    config, *_, checkpoint = files('centerpoint_pillar_toy', 'Autoware')
    asked = ['--contract', 'autoware', '--output-file', str(tmp_path / 'graphs'), '--verify', '--frames', '2']
    assert export_app.main([config, checkpoint, *asked, '--cfg-options', *data]) == 0
    assert 'NOT PROVEN' not in capsys.readouterr().out
    assert check_app.check_autoware([str(tmp_path / 'graphs')]) == 0


def test_the_onnx_run_goes_over_the_dump_first(runs):
    assert (runs / PRINTED).read_text().count('agrees (worst') == 2


def test_a_head_that_gives_something_else_is_found_by_the_dump(runs, data, tmp_path, capsys):
    work_dir = shutil.copytree(runs, tmp_path / 'centerpoint_toy')
    sample = list_samples(work_dir / 'dump')[0]
    path = next(sample.glob('points_*.bin'))
    from mmdeploy_ext.core.dump import load_dump, save_dump

    tensors, manifest = load_dump(sample)
    tensors['heatmap_0'] = tensors['heatmap_0'] + 1
    shutil.rmtree(sample)
    facts = {key: value for key, value in manifest.items() if key != 'tensors'}
    save_dump(path.parent, tensors, facts)
    assert evaluate(ONNX, work_dir, *data) == 1
    said = capsys.readouterr().out
    assert 'up to date' in said  # the files of the earlier run
    assert 'DIFFERS: heatmap_0' in said
    assert 'NOT PROVEN' in said
