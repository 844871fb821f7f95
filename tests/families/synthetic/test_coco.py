"""The generated COCO-format set: equal seeds, whole folders, masks that are what can be seen."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_codec
from pycocotools.coco import COCO

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.families.synthetic import coco, scene
from mmdeploy_ext.upstream.compat.panoptic_quality import rgb2id

REPOSITORY = Path(__file__).resolve().parents[3]
SMALL = dict(seed=3, train_images=2, val_images=21, quiet=True)


def file_hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('toy') / 'toy_coco'
    assert coco.ensure_toy_panoptic(root, **SMALL)
    return root


def annotation_file(root: Path, split: str) -> str:
    return str(root / 'annotations' / f'instances_{split}2017.json')


def test_same_seed_gives_same_bytes_and_another_seed_does_not(tmp_path):
    few = dict(train_images=2, val_images=2, quiet=True)
    for name, seed in (('one', 3), ('again', 3), ('other', 4)):
        assert coco.ensure_toy_coco(tmp_path / name, seed=seed, **few)
    one, again, other = (file_hashes(tmp_path / name) for name in ('one', 'again', 'other'))
    assert one == again
    assert not any(one[name] == other[name] for name in one if name.endswith('.jpg'))


def test_masks_boxes_and_areas_agree_and_do_not_overlap(small_set):
    index = COCO(annotation_file(small_set, 'val'))
    for image_id, record in index.imgs.items():
        picture = cv2.imread(str(small_set / 'val2017' / record['file_name']))
        assert picture.shape == (record['height'], record['width'], 3)
        taken = np.zeros(picture.shape[:2], int)
        for annotation in index.loadAnns(index.getAnnIds(imgIds=image_id)):
            mask = index.annToMask(annotation)
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation['bbox']
            assert [columns.min(), rows.min()] == [x, y]
            assert [np.ptp(columns) + 1, np.ptp(rows) + 1] == [width, height]
            assert mask.sum() == annotation['area'] >= scene.MIN_PIXELS
            taken += mask
        assert taken.max(initial=0) <= 1
    assert {len(index.getAnnIds(imgIds=image_id)) > 0 for image_id in index.imgs} == {False, True}
    assert {annotation['category_id'] for annotation in index.anns.values()} == {1, 2, 3, 4, 5, 6}


def test_mmdet_reads_the_set_and_gives_the_ground_truth_ap_1(small_set):
    from mmdet.datasets import build_dataset

    from mmdeploy_ext.base.config import load_config

    data = load_config(str(REPOSITORY / 'configs/_base_/datasets/toy_coco.py')).data.val
    assert tuple(data.classes) == scene.CLASSES
    data.ann_file, data.img_prefix = annotation_file(small_set, 'val'), str(small_set / 'val2017')
    dataset = build_dataset(data, {'test_mode': True})
    results = []
    for index in range(len(dataset)):
        truth = dataset.get_ann_info(index)
        boxes = np.concatenate([truth['bboxes'], np.full((len(truth['bboxes']), 1), 0.9)], axis=1)
        per_class = [np.flatnonzero(truth['labels'] == label) for label in range(len(scene.CLASSES))]
        masks = [mask_codec.encode(np.asfortranarray(mask_codec.decode(rle))) for rle in truth['masks']]
        results.append(
            ([boxes[chosen] for chosen in per_class], [[masks[i] for i in chosen] for chosen in per_class])
        )
    metrics = dataset.evaluate(results, metric=['bbox', 'segm'])
    assert metrics['bbox_mAP'] == metrics['segm_mAP'] == pytest.approx(1.0)


# ---- panoptic annotations


def test_segments_are_the_masks_of_the_instances_and_the_ground_round_them(small_set):
    content = json.loads((small_set / 'annotations/panoptic_val2017.json').read_text())
    assert [one['name'] for one in content['categories']] == [*scene.CLASSES, *coco.STUFF]
    assert sum(one['isthing'] for one in content['categories']) == len(scene.CLASSES)
    for index, entry in enumerate(content['annotations'][:4]):
        picture = cv2.imread(str(small_set / 'annotations/panoptic_val2017' / entry['file_name']))
        segments, instances = rgb2id(picture[..., ::-1]), coco.sample(3, 'val2017', index)[1]
        found = entry['segments_info']
        assert {one['id'] for one in found} == set(np.unique(segments)) - {0}
        assert all(one['area'] == (segments == one['id']).sum() for one in found)
        things = [one for one in found if one['category_id'] <= len(scene.CLASSES)]
        for one, instance in zip(things, instances, strict=True):
            assert one['category_id'] == instance.label + 1
            assert ((segments == one['id']) == instance.mask).all()


@pytest.fixture(scope='module')
def dataset(small_set):
    from mmdet.datasets import CocoPanopticDataset

    return CocoPanopticDataset(
        str(small_set / 'annotations/panoptic_train2017.json'),
        [],
        seg_prefix=str(small_set / 'annotations/panoptic_train2017'),
        classes=(*scene.CLASSES, *coco.STUFF),
        test_mode=True,
    )


def right_maps(root, dataset):
    """Return the maps of the annotations."""
    maps = []
    for info, entry in zip(dataset.data_infos, dataset.coco.dataset['annotations'], strict=True):
        picture = cv2.imread(str(root / 'annotations/panoptic_train2017' / info['segm_file']))
        segments, panoptic = rgb2id(picture[..., ::-1]), np.full(picture.shape[:2], 11, np.int32)
        for number, one in enumerate(entry['segments_info']):
            label = one['category_id'] - 1
            panoptic[segments == one['id']] = label + (number * 1000 if label < 6 else 0)
        maps.append(panoptic)
    return maps


def test_mmdets_evaluator_gives_the_panoptic_quality_of_the_paper(small_set, dataset):
    def quality(maps):
        return dataset.evaluate([dict(pan_results=one.copy()) for one in maps], metric=['pq'], nproc=1)

    maps = right_maps(small_set, dataset)
    best = quality(maps)
    assert best['PQ'] == best['SQ'] == best['RQ'] == best['PQ_th'] == best['PQ_st'] == 100
    worse = [one.copy() for one in maps]
    ids = [int(one) for one in np.unique(worse[0]) if one >= 1000]
    worse[0][worse[0] == ids[0]] = 11  # a thing that is not found
    found = quality(worse)
    label = ids[0] % 1000
    same = sum((np.unique(one)[np.unique(one) >= 1000] % 1000 == label).sum() for one in maps)
    classes = {int(one) % 1000 for each in maps for one in np.unique(each) if one != 11}
    missed = (same - 1) / (same - 1 + 0.5) if same > 1 else 0.0
    assert found['PQ'] == pytest.approx(100 * (len(classes) - 1 + missed) / len(classes))
    assert found['PQ_st'] == 100 and found['PQ_th'] < 100


def test_the_help_needs_no_pycocotools():
    code = (
        'import sys; sys.modules["pycocotools"] = None\n'
        'from mmdeploy_ext.cli import synthetic_app; synthetic_app.build_parser()'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_nothing_of_another_is_written_or_removed_beside_a_set(tmp_path):
    (tmp_path / 'victim').write_text('mine')
    for name in ('.set.part', '.set.former'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'notes.txt').write_text('mine')
    parameters = dict(SMALL, val_images=1, train_images=1)
    coco.ensure_toy_coco(tmp_path / 'set', **parameters)
    assert all((tmp_path / name / 'notes.txt').is_file() for name in ('.set.part', '.set.former'))
    (tmp_path / '.set.lock').unlink()
    (tmp_path / '.set.lock').symlink_to('victim')
    with pytest.raises(DataError, match='is a link'):
        coco.ensure_toy_coco(tmp_path / 'set', **parameters)
    assert (tmp_path / 'victim').read_text() == 'mine'
