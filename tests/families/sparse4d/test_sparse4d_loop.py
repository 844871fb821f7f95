"""Sparse4D in the test loop: both engines' boxes, tracks and metrics over whole scenes, and its film."""

import importlib.util
import pickle

import numpy as np
import pytest

import toy_nuscenes
import toy_sparse4d_tracks
from mmdeploy_ext.cli import test_app
from mmdeploy_ext.core.files import read_json
from toy_atss import REPO
from toy_frames import SPARSE4D

CONFIG = str(REPO / 'projects/configs/Sparse4D/sparse4d_toy.py')
PTH, ONNX = (CONFIG.replace('.py', f'_{name}.py') for name in ('pth', 'onnx'))
SCENES, FRAMES = 2, 3
METRICS = ['bbox', 'tracking'] if importlib.util.find_spec('motmetrics') else ['bbox']


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = toy_nuscenes.write(
        tmp_path_factory.mktemp('data'), val_scenes=SCENES, frames=FRAMES, sweeps=0, drop_share=0
    )
    return root


@pytest.fixture(scope='module')
def infos(root):
    return root / toy_nuscenes.INFOS


@pytest.fixture(scope='module')
def checkpoint(infos, root, tmp_path_factory):
    return SPARSE4D.write_fitted(toy_sparse4d_tracks.follow, infos, root, tmp_path_factory.mktemp('toy'))


@pytest.fixture(scope='module')
def evaluate(infos, root, checkpoint):
    """Runs a config in a work directory with the overrides of `options`; the results go to a file there."""

    def run(config, work_dir, results, *options):
        data = f'data.test.ann_file={infos}', f'data.test.data_root={root}/', 'data.workers_per_gpu=0'
        words = [config, checkpoint, '--eval', *METRICS, '--out', str(work_dir / results)]
        assert test_app.main([*words, '--work-dir', str(work_dir), '--cfg-options', *data, *options]) == 0

    return run


@pytest.fixture(scope='module')
def runs(evaluate, tmp_path_factory):
    """The work directory of a run by PyTorch and of one by ONNX Runtime, with the results of both."""
    work_dir = tmp_path_factory.mktemp('run') / 'sparse4d_toy'
    evaluate(PTH, work_dir, 'pth.pkl', 'backend_config.dump.frames=2')
    evaluate(ONNX, work_dir, 'onnx.pkl')
    return work_dir


def results_of(runs):
    """Return the boxes of both engines, frame by frame."""
    return [pickle.loads((runs / name).read_bytes()) for name in ('pth.pkl', 'onnx.pkl')]


@pytest.mark.matrix
def test_metrics_are_those_of_a_model_that_finds_and_equal_on_both_engines(runs):
    reference, engine = (
        read_json(path)['metrics'] for path in sorted(runs.glob('metrics*.json'), reverse=True)
    )
    assert reference.keys() == engine.keys()
    assert reference['pts_bbox_NuScenes/NDS'] > 0.4
    for name, value in reference.items():
        assert (np.isnan(value) and np.isnan(engine[name])) or abs(value - engine[name]) <= 0.0005, name


@pytest.mark.matrix
def test_tracks_have_an_amota_that_is_equal_on_both_engines(runs):
    pytest.importorskip('motmetrics', reason='optional: pip install motmetrics')
    reference, engine = (read_json(runs / f'metrics_{name}.json')['metrics'] for name in ('pth', 'onnx'))
    assert reference['tracking/amota'] > 0.2
    assert abs(reference['tracking/amota'] - engine['tracking/amota']) <= 0.0005


@pytest.mark.matrix
def test_track_ids_are_equal_over_whole_scenes_and_go_on_in_a_scene(runs):
    reference, engine = results_of(runs)
    assert len(reference) == len(engine) == SCENES * FRAMES
    for frame, other in zip(reference, engine, strict=True):
        # boxes of nearly equal scores may change places: an id tells which is which
        order, places = (np.argsort(boxes['instance_ids'].numpy()) for boxes in (frame, other))
        for name, tolerance in (('instance_ids', 0), ('labels_3d', 0), ('scores_3d', 1e-4)):
            values, got = frame[name].numpy()[order], other[name].numpy()[places]
            np.testing.assert_allclose(got, values, rtol=0, atol=tolerance)
    best = [set(frame['instance_ids'][frame['scores_3d'] > 0.3].tolist()) for frame in reference]
    for first in (0, FRAMES):
        assert len(best[first] & best[first + FRAMES - 1]) >= 3
    assert not best[FRAMES - 1] & best[FRAMES], 'a scene that begins much later has other ids'
