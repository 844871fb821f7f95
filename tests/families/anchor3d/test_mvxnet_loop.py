"""MVX-Net on generated pictures and sweeps as those of KITTI: the test loop, and `run` on their infos."""

import pickle

import numpy as np
import pytest
import torch

from mmdeploy_ext.cli import export_app, run_app, test_app
from mmdeploy_ext.core.files import read_json
from mmdeploy_ext.seeded.weights import write_seeded
from mmdeploy_ext.synthetic.monocular import write_annotations
from mmdeploy_ext.synthetic.nuscenes import SetOptions, ensure_toy_nuscenes
from toy_atss import REPO

DUMPED = 4
"""Number of frames that PyTorch's loop dumps, and ONNX Runtime's compares."""
CONFIG = REPO / 'projects/configs/MVXNet/mvxnet_toy'


def write_weights(path):
    """Write seeded weights whose scores stay below 1 on these sweeps: equal scores have no order."""
    write_seeded(f'{CONFIG}.py', path)
    content = torch.load(path)
    for name in ('weight', 'bias'):
        content['state_dict'][f'pts_bbox_head.conv_cls.{name}'] *= 0.25
    torch.save(content, path)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'toy_nuscenes'
    ensure_toy_nuscenes(folder, SetOptions(train_scenes=1, val_scenes=1, frames=2), jobs=1, quiet=True)
    write_annotations(folder)
    return folder


@pytest.mark.matrix
def test_sweeps_are_where_their_pictures_are(root):
    infos = pickle.loads((root / 'kitti_infos_val.pkl').read_bytes())
    inside = []
    for info in infos:
        points = np.fromfile(root / info['point_cloud']['velodyne_path'], np.float32).reshape(-1, 4)
        to_camera = info['calib']['Tr_velo_to_cam']
        in_camera = points[:, :3] @ to_camera[:3, :3].T + to_camera[:3, 3]
        for location, sides in zip(info['annos']['location'], info['annos']['dimensions'], strict=True):
            middle = location - (0, sides[1] / 2, 0)
            inside.append((np.linalg.norm(in_camera - middle, axis=1) < sides.max() / 2 + 0.2).sum())
    assert len(infos) > 2 and np.mean(np.array(inside) > 0) > 0.5  # some objects are hidden


@pytest.mark.matrix
def test_both_engines_give_the_same_results_and_metrics(root, tmp_path, capsys):
    checkpoint, results = str(tmp_path / 'seeded.pth'), []
    write_weights(checkpoint)
    options = [f'data.test.ann_file={root}/kitti_infos_val.pkl', f'data.test.data_root={root}/']
    for engine in ('pth', 'onnx'):
        words = [f'{CONFIG}_{engine}.py', checkpoint, '--eval=bbox', '--work-dir', str(tmp_path)]
        words += ['--out', str(tmp_path / f'{engine}.pkl'), '--cfg-options', *options]
        assert test_app.main([*words, 'data.workers_per_gpu=0']) == 0
        results.append(pickle.loads((tmp_path / f'{engine}.pkl').read_bytes()))
    assert capsys.readouterr().out.count('agrees (worst') == DUMPED
    total = 0
    for pair in zip(*results, strict=True):
        boxes, others = (side['pts_bbox']['boxes_3d'].tensor.numpy()[:, :7] for side in pair)
        near = np.abs(boxes[:, None] - others[None]).max(-1) < 0.01
        assert len(boxes) == len(others) and near.any(1).all() and near.any(0).all()
        total += len(boxes)
    assert total > 20
    metrics = [read_json(tmp_path / f'metrics_{engine}.json')['metrics'] for engine in ('pth', 'onnx')]
    assert metrics[0] == pytest.approx(metrics[1], abs=5e-4, nan_ok=True)
    assert any(name.startswith('pts_bbox') for name in metrics[0])


@pytest.mark.matrix
def test_run_draws_the_boxes_of_infos(root, tmp_path):
    checkpoint, folder = str(tmp_path / 'seeded.pth'), str(tmp_path / 'mvxnet')
    write_weights(checkpoint)
    infos = str(root / 'kitti_infos_val.pkl')
    words = [f'{CONFIG}.py', checkpoint, '--output-file', folder, '--verify', '--frames', '3']
    words += ['--cfg-options', f'data.test.data_root={root}/', f'data.test.ann_file={infos}']
    assert export_app.main(words) == 0
    out = tmp_path / 'drawn'
    words = [folder, infos, '--data-root', str(root), '--out', str(out)]
    assert run_app.main([*words, '--json', str(tmp_path / 'run.json')]) == 0
    count = len(pickle.loads((root / 'kitti_infos_val.pkl').read_bytes()))
    assert len(list(out.glob('*.png'))) == count
