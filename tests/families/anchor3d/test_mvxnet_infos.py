"""MVX-Net on generated pictures and sweeps as those of KITTI: proven, and run on their infos."""

import pickle

import pytest
import torch

import toy_nuscenes
from dev.seeded.weights import write_seeded
from mmdeploy_ext.cli import export_app, run_app
from mmdeploy_ext.families.synthetic.monocular import write_annotations
from toy_atss import REPO

CONFIG = str(REPO / 'projects/configs/MVXNet/mvxnet_toy.py')


def write_weights(path):
    """Write seeded weights whose scores stay below 1 on these sweeps: equal scores have no order."""
    write_seeded(CONFIG, path)
    content = torch.load(path)
    for name in ('weight', 'bias'):
        content['state_dict'][f'pts_bbox_head.conv_cls.{name}'] *= 0.25
    torch.save(content, path)


@pytest.mark.matrix
def test_run_draws_the_boxes_of_infos(tmp_path):
    root = toy_nuscenes.write(tmp_path, val_scenes=1, frames=2)
    write_annotations(root)
    checkpoint, folder, out = str(tmp_path / 'seeded.pth'), str(tmp_path / 'mvxnet'), tmp_path / 'drawn'
    write_weights(checkpoint)
    infos = str(root / 'kitti_infos_val.pkl')
    words = [CONFIG, checkpoint, '--output-file', folder, '--verify', '--frames', '3']
    words += ['--cfg-options', f'data.test.data_root={root}/', f'data.test.ann_file={infos}']
    assert export_app.main(words) == 0
    words = [folder, infos, '--data-root', str(root), '--out', str(out)]
    assert run_app.main([*words, '--json', str(tmp_path / 'run.json')]) == 0
    count = len(pickle.loads((root / 'kitti_infos_val.pkl').read_bytes()))
    assert len(list(out.glob('*.png'))) == count
