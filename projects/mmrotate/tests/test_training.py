"""What the trained toys are made from: the generated set as mmrotate reads it, and losses on a CPU."""

import cv2
import numpy as np
import pytest

from mm2onnx_mmrotate import synthetic
from mm2onnx_mmrotate.detections import corners_of

SIZES = dict(train_images=2, val_images=3)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'toy_dota'
    assert synthetic.ensure_toy_dota(root, **SIZES)
    return root


def test_a_set_is_made_once_and_the_same_again(root, tmp_path):
    assert not synthetic.ensure_toy_dota(root, **SIZES)
    assert synthetic.main(['--out', str(tmp_path / 'again'), '--train-images', '2', '--val-images', '3']) == 0
    for path in root.glob('val/*/*'):
        assert path.read_bytes() == (tmp_path / 'again' / path.relative_to(root)).read_bytes()
    with pytest.raises(FileExistsError, match=f'{root}: exists'):
        synthetic.ensure_toy_dota(root, train_images=3, val_images=3)


@pytest.mark.parametrize('version', ['oc', 'le90', 'le135'])
def test_mmrotate_reads_the_objects_that_were_painted(root, version):
    from mmrotate.datasets import DOTADataset

    folder = root / 'val'
    dataset = DOTADataset(
        f'{folder}/annfiles/', [], version, classes=synthetic.CLASSES, img_prefix=f'{folder}/images/'
    )
    assert len(dataset) == SIZES['val_images']
    for index in range(len(dataset)):
        number = int(dataset.data_infos[index]['filename'][1:5])
        aerial, annotation = synthetic.sample(0, 'val', number), dataset.get_ann_info(index)
        assert annotation['labels'].tolist() == aerial.labels.tolist()
        for corners, read in zip(corners_of(aerial.boxes), corners_of(annotation['bboxes']), strict=True):
            distances = np.linalg.norm(corners[:, None] - read[None], axis=-1)
            assert distances.min(0).max() < 0.5


def test_objects_do_not_touch_and_some_pictures_are_empty():
    for index in (0, 1, synthetic.EMPTY_EVERY - 1):
        aerial = synthetic.sample(3, 'train', index)
        count = np.zeros(aerial.image_bgr.shape[:2], np.uint8)
        for corners in corners_of(aerial.boxes):
            count += cv2.fillPoly(np.zeros_like(count), [np.rint(corners).astype(np.int32)], 1)
        assert count.max(initial=0) <= 1
        assert (len(aerial.labels) == 0) == (index == synthetic.EMPTY_EVERY - 1)
