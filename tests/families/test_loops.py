"""The test loop of families' toys by both engines: equal metrics, and the dumped samples agree.

In the suite: masks; boxes are in tests/cli/test_test_loop.py, frames in folders of families, sweeps in
test_centerpoint_export.py.
"""

import functools
import shutil

import pytest
import torch

import toy_nuscenes
from dev.seeded.weights import write_seeded
from marking import in_suite
from mmdeploy_ext.base.dump import list_samples, load_dump, save_dump
from mmdeploy_ext.base.files import read_json
from mmdeploy_ext.cli import test_app
from mmdeploy_ext.families.synthetic.coco import ensure_toy_coco, ensure_toy_panoptic
from mmdeploy_ext.families.synthetic.monocular import write_annotations
from toy_atss import REPO

SAMPLES = 3
TRAINED = {
    'mask_rcnn_toy': ('coco', 'segm', 0.25),
    'solov2_toy': ('coco', 'segm', 0.25),
    'yolox_toy': ('coco', 'bbox', 0.35),
    'retinanet_toy': ('coco', 'bbox', 0.35),
    'deformable_detr_toy': ('coco', 'bbox', 0.3),
    'rtdetr_toy': ('coco', 'bbox', 0.2),
    'panoptic_fpn_toy': ('panoptic', 'pq', 25),
    'centerpoint_toy': ('sweeps', 'bbox', 0.3),
    'pointpillars_toy': ('sweeps', 'bbox', 0.3),
    'centerpoint_pillar_toy': ('sweeps', 'bbox', 0.05),
    'bevfusion_toy': ('drive', 'bbox', 0.4),
}
"""Toy -> its data, the metric that is asked for, and the least mAP or PQ that a trained model has."""
SEEDED = {
    'fcos3d_toy': ('nuscenes_mono', 'bbox', -1),
    'pgd_toy': ('kitti_mono', 'bbox', -1),
    'smoke_toy': ('kitti_mono', 'bbox', -1),
    'imvoxelnet_toy': ('kitti', 'bbox', -1),
    'mvxnet_toy': ('kitti', 'bbox', -1),
}
WORKERS = 'data.workers_per_gpu=0'
LEADING = '{metric}_mAP', 'PQ', 'pts_bbox_NuScenes/mAP'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Return kind of data -> the options that name a small generated set, which is made once."""

    @functools.cache
    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        root = folder / 'toy'
        if kind == 'coco':
            ensure_toy_coco(root, train_images=1, val_images=SAMPLES, quiet=True)
            return dict(ann_file=f'{root}/annotations/instances_val2017.json', img_prefix=f'{root}/val2017/')
        if kind == 'panoptic':
            ensure_toy_panoptic(root, train_images=1, val_images=SAMPLES, quiet=True)
            maps = f'{root}/annotations/panoptic_val2017'
            return dict(ann_file=f'{maps}.json', seg_prefix=f'{maps}/', img_prefix=f'{root}/val2017/')
        if kind == 'sweeps':
            root = toy_nuscenes.write(folder, val_scenes=1, frames=2, image_size=(32, 32))
        else:
            root = toy_nuscenes.write(folder, val_scenes=1, frames=2)
        if kind in ('sweeps', 'drive'):
            return dict(ann_file=f'{root}/toy_nuscenes_infos_val.pkl', data_root=f'{root}/')
        write_annotations(root)
        if kind == 'kitti':
            return dict(ann_file=f'{root}/kitti_infos_val.pkl', data_root=f'{root}/')
        pictures = f'{root}/{kind.removesuffix("_mono")}_infos_val_mono3d.coco.json'
        named = dict(ann_file=pictures, data_root=f'{root}/', img_prefix=f'{root}/')
        return named | (dict(info_file=f'{root}/kitti_infos_val.pkl') if kind == 'kitti_mono' else {})

    return make


def config_of(toy):
    (path,) = [*REPO.glob(f'configs/demo/{toy}.py'), *REPO.glob(f'projects/configs/*/{toy}.py')]
    return path


def evaluate(toy, engine, checkpoint, metric, folder, data):
    """Return the exit status of a run of the loop; its metrics are in `folder`."""
    config = config_of(toy).with_name(f'{toy}_{engine}.py')
    words = [str(config), str(checkpoint), '--eval', metric, '--work-dir', str(folder), '--cfg-options']
    return test_app.main([*words, *(f'data.test.{key}={value}' for key, value in data.items()), WORKERS])


@pytest.fixture(scope='module')
def runs(data, tmp_path_factory):
    """Return toy -> the folder of a run by PyTorch and one by ONNX Runtime, and its checkpoint."""

    @functools.cache
    def run(toy):
        folder, checkpoint = tmp_path_factory.mktemp(toy), REPO / f'demo/checkpoints/{toy}.pth'
        kind, metric, _ = (TRAINED | SEEDED)[toy]
        if kind == 'drive':
            pytest.importorskip('mm2onnx_driving')
        if toy in SEEDED:
            checkpoint = folder / 'seeded.pth'
            write_seeded(str(config_of(toy)), checkpoint)
            content = torch.load(checkpoint)
            for key, value in content['state_dict'].items():
                if 'pts_bbox_head.conv_cls' in key:
                    value *= 0.25  # scores below 1: equal ones have no order
            torch.save(content, checkpoint)
        for engine in ('pth', 'onnx'):
            assert evaluate(toy, engine, checkpoint, metric, folder / 'run', data(kind)) == 0
        return folder / 'run', checkpoint

    return run


@pytest.mark.parametrize('toy', in_suite(TRAINED | SEEDED, 'mask_rcnn_toy'))
def test_metrics_of_the_file_are_those_of_pytorch(toy, runs, capfd):
    folder, _ = runs(toy)
    _, metric, least = (TRAINED | SEEDED)[toy]
    wanted, found = (read_json(folder / f'metrics_{engine}.json')['metrics'] for engine in ('pth', 'onnx'))
    assert found == pytest.approx(wanted, abs=1e-3 if metric == 'pq' else 5e-4, nan_ok=True)
    leading = [wanted[key] for name in LEADING if (key := name.format(metric=metric)) in wanted]
    assert (not leading and toy in SEEDED) or leading[0] >= least
    assert capfd.readouterr().out.count('agrees') == len(list_samples(folder / 'dump')) > 0


def test_a_head_that_gives_something_else_is_found_by_the_dump(runs, data, tmp_path, capsys):
    folder, checkpoint = runs('centerpoint_toy')
    work_dir = shutil.copytree(folder, tmp_path / 'run')
    sample = list_samples(work_dir / 'dump')[0]
    tensors, manifest = load_dump(sample)
    shutil.rmtree(sample)
    facts = {key: value for key, value in manifest.items() if key != 'tensors'}
    save_dump(sample, dict(tensors, heatmap_0=tensors['heatmap_0'] + 1), facts)
    assert evaluate('centerpoint_toy', 'onnx', checkpoint, 'bbox', work_dir, data('sweeps')) == 1
    assert 'DIFFERS: heatmap_0' in capsys.readouterr().out
