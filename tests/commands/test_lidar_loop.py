"""The test loop, the export and the proof of a LiDAR detector without a memory, on a small generated set."""

import contextlib
import shutil

import pytest

import toy_nuscenes
from marking import in_suite
from mmdeploy_ext.cli import check_app, export_app, test_app, verify_app
from mmdeploy_ext.core.dump import list_samples
from mmdeploy_ext.core.files import read_json
from toy_atss import REPO
from verdicts import cases_of

FRAMES = 4
PRINTED = 'printed.txt'


def files(toy, folder):
    """Return the configs of a toy, as it is trained and for both engines, and its checkpoint."""
    config = REPO / 'projects/configs' / folder / toy
    configs = [f'{config}{engine}.py' for engine in ('', '_pth', '_onnx')]
    return *configs, str(REPO / f'demo/checkpoints/{toy}.pth')


CONFIG, PTH, ONNX, CHECKPOINT = files('centerpoint_toy', 'BEVFusion')


def register():
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401


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


def test_a_dump_has_points_view_and_raw_outputs(runs):
    samples = list_samples(runs / 'dump')
    assert [sample.name for sample in samples] == ['000000', '000001']
    names = {path.name for path in samples[0].glob('*.bin')}
    assert 'bev_1x96x56x56.bin' in names
    assert 'heatmap_5_1x2x56x56.bin' in names
    assert any(name.startswith('points_') and name.endswith('x5.bin') for name in names)


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


@pytest.mark.matrix
def test_an_export_is_proven_and_reported(data, tmp_path, capsys):
    graphs, report = str(tmp_path / 'graphs'), tmp_path / 'report'
    words = [
        CONFIG,
        CHECKPOINT,
        '--output-file',
        graphs,
        '--verify',
        '--frames',
        '2',
        '--report',
        str(report),
    ]
    assert export_app.main([*words, '--cfg-options', *data]) == 0
    said = capsys.readouterr().out
    assert 'PROVEN' in said
    assert 'NOT PROVEN' not in said
    assert 'tools/demo/lidar_demo.py SWEEP.bin' in said
    content = read_json(report / 'verdict.json')
    assert content['verdict'] == 'proven'
    names = [case.name for case in cases_of(content)]
    assert len(names) > 4 and any('more candidates than are compared' in name for name in names)
    assert 'data:image/jpeg' in (report / 'report.html').read_text()


@pytest.mark.matrix  # in the suite: test_nds_and_map_by_both_engines_are_equal
def test_verify_compares_the_metrics_too(data, tmp_path, capsys):
    graphs = str(tmp_path / 'graphs')
    assert export_app.main([CONFIG, CHECKPOINT, '--output-file', graphs, '--cfg-options', *data]) == 0
    verify = [CONFIG, CHECKPOINT, graphs, '--frames', '2', '--eval', 'bbox', '--cfg-options', *data]
    assert verify_app.main(verify) == 0
    assert 'NDS: PyTorch' in capsys.readouterr().out


@pytest.mark.parametrize(
    'words, expected',
    [
        (['--contract', 'fork', '--output-file', 'x.onnx'], '--contract fork'),
        (['--precision', 'bf16'], '--precision bf16'),
        (['--output-file', 'x.onnx'], 'expected a folder'),
    ],
    ids=str,
)
def test_options_that_it_does_not_have_are_refused(data, tmp_path, monkeypatch, words, expected, capsys):
    monkeypatch.chdir(tmp_path)
    assert export_app.main([CONFIG, CHECKPOINT, *words]) == 2
    assert expected.lower() in capsys.readouterr().err.lower()
    assert not list(tmp_path.iterdir())
