"""The test loop of monocular detectors on generated pictures, by mmdet3d's evaluators."""

import pickle

import numpy as np
import pytest

from mmdeploy_ext.cli import test_app
from mmdeploy_ext.compat.kitti_overlaps import OF_FIRST, OF_SECOND, OF_UNION, overlaps
from mmdeploy_ext.core.files import read_json
from mmdeploy_ext.seeded.weights import write_seeded
from mmdeploy_ext.synthetic.monocular import write_annotations
from mmdeploy_ext.synthetic.nuscenes import SetOptions, ensure_toy_nuscenes
from toy_atss import REPO

KINDS = dict(fcos3d='nuscenes', pgd='kitti', smoke='kitti', imvoxelnet='')
"""Toy -> data set of its annotations of pictures; that of ImVoxelNet reads the infos of KITTI's LiDAR."""


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'toy_nuscenes'
    ensure_toy_nuscenes(folder, SetOptions(train_scenes=1, val_scenes=1, frames=2), jobs=1, quiet=True)
    counts = write_annotations(folder)
    assert (
        counts['nuscenes_infos_val_mono3d.coco.json'] == 12 and counts['kitti_infos_val_mono3d.coco.json'] > 2
    )
    return folder


def check_equal(reference, candidate):
    """Compare the results of all pictures of two runs: each box of either has one in the other."""
    matched = total = 0
    for sides in zip(reference, candidate, strict=True):
        pair = [side.get('img_bbox', side) for side in sides]
        first, second = (
            np.concatenate(
                [
                    side['boxes_3d'].tensor.numpy(),
                    *(100 * side[key].numpy()[:, None] for key in sorted(side.keys() - {'boxes_3d'})),
                ],
                1,
            )
            for side in pair
        )
        near = np.abs(first[:, None] - second[None]).max(-1) < 0.01
        matched, total = matched + int(near.any(1).sum()), total + len(first)
        assert len(first) == len(second) and near.any(0).all(), (len(first), len(second))
    assert total > 20 and matched == total, (matched, total)


@pytest.mark.parametrize('kind', [pytest.param(kind, marks=pytest.mark.matrix) for kind in KINDS])
def test_both_engines_give_the_same_results_and_metrics(kind, root, tmp_path):
    folder = 'Monocular' if KINDS[kind] else 'ImVoxelNet'
    config, results = REPO / 'projects/configs' / folder / f'{kind}_toy', []
    write_seeded(f'{config}.py', tmp_path / 'seeded.pth')
    options = [f'data.test.data_root={root}/', 'data.workers_per_gpu=0']
    if KINDS[kind]:
        options.append(f'data.test.ann_file={root}/{KINDS[kind]}_infos_val_mono3d.coco.json')
        options.append(f'data.test.img_prefix={root}/')
    else:
        options.append(f'data.test.ann_file={root}/kitti_infos_val.pkl')
    if KINDS[kind] == 'kitti':
        options.append(f'data.test.info_file={root}/kitti_infos_val.pkl')
    for engine in ('pth', 'onnx'):
        words = [
            f'{config}_{engine}.py',
            str(tmp_path / 'seeded.pth'),
            '--eval=bbox',
            '--work-dir',
            str(tmp_path),
        ]
        words += ['--out', str(tmp_path / f'{engine}.pkl'), '--cfg-options', *options]
        assert test_app.main(words) == 0
        results.append(pickle.loads((tmp_path / f'{engine}.pkl').read_bytes()))
    check_equal(*results)
    metrics = [read_json(tmp_path / f'metrics_{engine}.json')['metrics'] for engine in ('pth', 'onnx')]
    assert metrics[0] == pytest.approx(metrics[1], abs=5e-4, nan_ok=True)  # of classes without a box
    assert any(name.startswith('img_bbox' if KINDS[kind] else 'KITTI') for name in metrics[0])


def test_overlaps_of_turned_boxes_are_those_of_kitti_without_its_cuda_kernel():
    boxes = np.array(
        [[0, 0, 4, 2, 0], [0, 0, 4, 2, np.pi / 2], [1, 0, 2, 2, 0], [9, 9, 1, 1, 0.3]], np.float32
    )
    np.testing.assert_allclose(overlaps(boxes, boxes, OF_UNION)[0], [1, 4 / 12, 4 / 8, 0], atol=1e-6)
    np.testing.assert_allclose(overlaps(boxes, boxes, OF_FIRST)[2], [1, 2 / 4, 1, 0], atol=1e-6)
    turned = np.array([[0, 0, 4, 1, np.pi / 4], [1.2, -1.2, 0.5, 0.5, 0]], np.float32)
    whole = np.array([[0, 0, 2, 2, 0], [0, 0, 2, 4, 0]])
    np.testing.assert_allclose(overlaps(whole, whole), [[1, 0.5], [0.5, 1]], atol=1e-6)
    assert overlaps(turned[:1], turned[1:])[0, 0] > 0  # angles are clockwise: the long side goes down
    assert overlaps(turned[:1], turned[1:] * (1, -1, 1, 1, 1))[0, 0] == 0


@pytest.mark.parametrize('criterion', [OF_UNION, OF_FIRST, OF_SECOND, 2])
def test_a_box_that_is_a_point_overlaps_nothing(criterion):
    box, points = np.array([[0, 0, 4, 2, 0.3]]), np.array([[0.5, 0, 0, 0, 0], [50, 0, 0, 0, 0.1]])
    assert not overlaps(box, points, criterion).any() and not overlaps(points, box, criterion).any()
