"""The test loop with a memory: whole scenes, both engines, real processes, on a small generated set."""

import shutil

import numpy as np
import pytest

import toy_nuscenes
from mmdeploy_ext.base.dump import list_samples, load_dump, save_dump
from toy_atss import REPO
from toy_nuscenes import evaluate, metrics

CONFIG = str(REPO / 'projects/configs/StreamPETR/stream_petr_toy.py')
PTH, ONNX = (CONFIG.replace('.py', f'_{name}.py') for name in ('pth', 'onnx'))
CHECKPOINT = str(REPO / 'demo/checkpoints/stream_petr_toy.pth')
SCENES, FRAMES = 2, 2


@pytest.fixture(scope='module')
def infos(tmp_path_factory):
    root = toy_nuscenes.write(tmp_path_factory.mktemp('data'), val_scenes=SCENES, frames=FRAMES)
    return root / toy_nuscenes.INFOS


@pytest.fixture(scope='module')
def pth_run(infos, tmp_path_factory):
    """One PyTorch run with a dump of three frames, in this process."""
    work_dir = tmp_path_factory.mktemp('run') / 'stream_petr_toy'
    assert evaluate(PTH, CHECKPOINT, infos, work_dir, 'backend_config.dump.frames=3') == 0
    return work_dir


@pytest.fixture(scope='module')
def onnx_run(pth_run, infos, tmp_path_factory):
    """The same folder after an ONNX run, with its results."""
    work_dir = shutil.copytree(pth_run, tmp_path_factory.mktemp('run') / 'stream_petr_toy')
    assert evaluate(ONNX, CHECKPOINT, infos, work_dir, out='onnx.pkl') == 0
    return work_dir


@pytest.fixture
def work_dir(onnx_run, tmp_path):
    """A copy of both runs' folder, for one test to spoil."""
    return shutil.copytree(onnx_run, tmp_path / 'stream_petr_toy')


def test_nds_and_map_by_both_engines_are_equal(onnx_run):
    toy_nuscenes.assert_equal_scores(onnx_run)


def test_a_dump_has_the_files_that_the_forks_page_lists(pth_run):
    samples = list_samples(pth_run / 'dump')
    assert [sample.name for sample in samples] == ['000000', '000001', '000002']
    names = {path.name for path in samples[1].glob('*.bin')}
    tokens, memory, kept, queries = 6 * 6 * 16, 40, 48, 48
    assert names >= {
        'img_6x3x96x256.bin',
        f'img2lidar_1x{tokens}x4x4.bin',
        f'intrinsic_1x{tokens}x2.bin',
        f'coords_1x{tokens}x64x4x1.bin',
        'query_pos_1x40x96.bin',
        'tgt_1x40x96.bin',
        f'out_outs_dec_1x{queries}x96_pth.bin',
        f'all_cls_scores_3x1x{queries}x10_pth.bin',
        f'all_bbox_preds_3x1x{queries}x10_pth.bin',
    }
    for name, end in dict(embedding=96, timestamp=1, egopose='4x4', ref_point=3, velo=2).items():
        assert f'out_mem_{name}_1x{memory}x{end}_pth.bin' in names
        assert f'post_mem_{name}_1x{kept}x{end}_pth.bin' in names
    assert {'timestamp', 'ego_pose', 'ego_pose_inv', 'prev_exists'} <= load_dump(samples[1])[0].keys()
    tensors, manifest = load_dump(samples[1])
    assert tensors['timestamp'].dtype == tensors['post_mem_timestamp'].dtype == np.float64
    assert manifest['sample'] == 1 and manifest['scene_token'] and tensors['prev_exists'].max() == 1


def test_the_onnx_run_agrees_with_the_dump_and_keeps_its_files(work_dir, infos, capfd):
    assert evaluate(ONNX, CHECKPOINT, infos, work_dir) == 0
    out = capfd.readouterr().out
    assert out.count(': agrees') == 3 and 'up to date' in out
    assert len(list((work_dir / 'stream_petr_toy_deploy').glob('*.onnx'))) == 3


def test_a_dump_that_differs_stops_the_run(work_dir, infos, capfd):
    sample = list_samples(work_dir / 'dump')[1]
    tensors, manifest = load_dump(sample)
    changed = tensors['all_bbox_preds'].copy()
    changed[..., 0] += 0.1
    save_dump(sample, {**tensors, 'all_bbox_preds': changed}, manifest)
    assert evaluate(ONNX, CHECKPOINT, infos, work_dir) == 1
    assert 'NOT PROVEN' in capfd.readouterr().out


def test_an_emptied_memory_changes_the_metrics(pth_run, infos, tmp_path):
    options = 'backend_config.memory=reset', 'backend_config.dump=None'
    assert evaluate(PTH, CHECKPOINT, infos, tmp_path, *options) == 0
    assert metrics(tmp_path, 'pth') != metrics(pth_run, 'pth')


def test_far_from_the_origin_a_dump_is_as_coarse_as_pytorchs_own_memory():
    from mmdeploy_ext.proving.against_dump import far_spec
    from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, TensorSpec

    groups = (ColumnGroup('xyz', (0,), 'm', atol=5e-3), ColumnGroup('log size', (1,), atol=1e-3))
    spec = GraphSpec('x', (), (TensorSpec('all_bbox_preds', 'float32', (1, 2), groups=groups),))
    near, far = (far_spec(spec, distance).outputs[0].groups for distance in (0.0, 1000.0))
    assert near == groups
    assert (far[0].atol, far[1].atol) == (pytest.approx(0.015), 1e-3)
