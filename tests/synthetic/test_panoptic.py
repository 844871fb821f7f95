"""Panoptic annotations of the generated set, and mmdet's own evaluation of them."""

import json

import cv2
import numpy as np
import pytest

from mmdeploy_ext.compat.panoptic_quality import PQStat, id2rgb, rgb2id
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.synthetic import scene
from mmdeploy_ext.synthetic.coco import ensure_toy_coco, sample
from mmdeploy_ext.synthetic.panoptic import STUFF, ensure_toy_panoptic, ground_and_shapes
from mmdeploy_ext.synthetic.scene import CLASSES


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('panoptic') / 'toy'
    assert ensure_toy_panoptic(folder, train_images=1, val_images=4, quiet=True)
    assert not ensure_toy_panoptic(folder)
    return folder


def watched(pattern, drawn):
    """Return a pattern that says when it is drawn."""

    def draw(*given):
        drawn.append(pattern)
        return pattern(*given)

    return draw


def test_the_ground_is_of_the_pattern_that_the_picture_shows(monkeypatch):
    for index in range(6):
        drawn = []
        with monkeypatch.context() as patch:
            patch.setattr(scene, 'PATTERNS', tuple(watched(one, drawn) for one in scene.PATTERNS))
            _, instances = sample(0, 'val2017', index)
        ground, shapes, _ = ground_and_shapes(0, 'val2017', index, None)
        assert scene.PATTERNS[ground] is drawn[0]
        assert all((one.mask == other.mask).all() for one, other in zip(instances, shapes, strict=True))


def test_segments_are_the_masks_of_the_instances_and_the_ground_round_them(root):
    content = json.loads((root / 'annotations/panoptic_val2017.json').read_text())
    assert [one['name'] for one in content['categories']] == [*CLASSES, *STUFF]
    assert sum(one['isthing'] for one in content['categories']) == len(CLASSES)
    for index, entry in enumerate(content['annotations']):
        picture = cv2.imread(str(root / 'annotations/panoptic_val2017' / entry['file_name']))
        segments, instances = rgb2id(picture[..., ::-1]), sample(0, 'val2017', index)[1]
        found = entry['segments_info']
        assert {one['id'] for one in found} == set(np.unique(segments)) - {0}
        assert all(one['area'] == (segments == one['id']).sum() for one in found)
        things = [one for one in found if one['category_id'] <= len(CLASSES)]
        for one, instance in zip(things, instances, strict=True):
            assert one['category_id'] == instance.label + 1
            assert ((segments == one['id']) == instance.mask).all()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / 'own.txt').write_text('mine')
    with pytest.raises(DataError, match='is not a generated set'):
        ensure_toy_panoptic(tmp_path)
    ensure_toy_coco(tmp_path / 'toy', train_images=1, val_images=1, quiet=True)
    (tmp_path / 'toy/READY.json').write_text('{"parameters": {"world": 2, "seed": 0, "frames": 2}}')
    with pytest.raises(DataError, match='is not that of a set of `mm2onnx synthetic coco`'):
        ensure_toy_panoptic(tmp_path / 'toy')


@pytest.fixture(scope='module')
def dataset(root):
    from mmdet.datasets import CocoPanopticDataset

    return CocoPanopticDataset(
        str(root / 'annotations/panoptic_val2017.json'),
        [],
        seg_prefix=str(root / 'annotations/panoptic_val2017'),
        classes=(*CLASSES, *STUFF),
        test_mode=True,
    )


def right_maps(root, dataset):
    """Return the maps of the annotations."""
    maps = []
    for info, entry in zip(dataset.data_infos, dataset.coco.dataset['annotations'], strict=True):
        picture = cv2.imread(str(root / 'annotations/panoptic_val2017' / info['segm_file']))
        segments, panoptic = rgb2id(picture[..., ::-1]), np.full(picture.shape[:2], 11, np.int32)
        for number, one in enumerate(entry['segments_info']):
            label = one['category_id'] - 1
            panoptic[segments == one['id']] = label + (number * 1000 if label < 6 else 0)
        maps.append(panoptic)
    return maps


def quality(dataset, maps):
    return dataset.evaluate([dict(pan_results=one.copy()) for one in maps], metric=['pq'], nproc=1)


def test_mmdets_evaluator_gives_the_panoptic_quality_of_the_paper(root, dataset, capsys):
    maps = right_maps(root, dataset)
    best = quality(dataset, maps)
    assert best['PQ'] == best['SQ'] == best['RQ'] == best['PQ_th'] == best['PQ_st'] == 100
    worse = [one.copy() for one in maps]
    ids = [int(one) for one in np.unique(worse[0]) if one >= 1000]
    worse[0][worse[0] == ids[0]] = 11  # a thing that is not found
    found = quality(dataset, worse)
    label = ids[0] % 1000
    same = sum((np.unique(one)[np.unique(one) >= 1000] % 1000 == label).sum() for one in maps)
    classes = {int(one) % 1000 for each in maps for one in np.unique(each) if one != 11}
    missed = (same - 1) / (same - 1 + 0.5) if same > 1 else 0.0
    assert found['PQ'] == pytest.approx(100 * (len(classes) - 1 + missed) / len(classes))
    assert found['PQ_st'] == 100 and found['PQ_th'] < 100


def test_sums_of_segments_are_means_over_classes_that_occur():
    one, other = PQStat(), PQStat()
    one[1].tp, one[1].iou, one[1].fp = 2, 1.5, 1
    other[1].tp, other[1].iou, other[1].fn = 1, 0.9, 2
    other[2].fn = 3
    one += other
    categories = {key: dict(isthing=key < 3) for key in (1, 2, 3)}
    means, classes = one.pq_average(categories, isthing=True)
    assert means['n'] == 2 and means['pq'] == pytest.approx(2.4 / 4.5 / 2)
    assert classes[1] == pytest.approx(dict(pq=2.4 / 4.5, sq=0.8, rq=3 / 4.5)) and classes[2]['pq'] == 0
    assert np.isnan(one.pq_average(categories, isthing=False)[0]['pq'])


def test_colours_are_numbers_of_segments():
    numbers = np.array([[0, 1, 255], [256, 65536, 6006]])
    assert (rgb2id(id2rgb(numbers)) == numbers).all() and id2rgb(numbers)[1, 0].tolist() == [0, 1, 0]
