"""The generated COCO-format set: equal seeds, whole folders, masks that are what can be seen."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmdeploy_ext.cli.synthetic_app import main as synthetic
from mmdeploy_ext.core.errors import DataError, UsageError
from mmdeploy_ext.synthetic import coco, scene, staging

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = dict(seed=3, train_images=24, val_images=40, quiet=True)


def file_hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('toy') / 'toy_coco'
    assert coco.ensure_toy_coco(root, **SMALL)
    return root


def annotation_file(root: Path, split: str) -> str:
    return str(root / 'annotations' / f'instances_{split}2017.json')


def test_same_seed_gives_same_bytes_and_another_seed_does_not(small_set, tmp_path):
    coco.ensure_toy_coco(tmp_path / 'again', **SMALL)
    coco.ensure_toy_coco(tmp_path / 'other', **{**SMALL, 'seed': 4})
    assert file_hashes(tmp_path / 'again') == file_hashes(small_set)
    same, other = file_hashes(small_set), file_hashes(tmp_path / 'other')
    assert same.keys() == other.keys()
    assert not any(same[name] == other[name] for name in same if name.endswith('.jpg'))


def test_train_val_and_pictures_of_no_split_differ():
    pictures = [coco.sample(0, split, 0, (96, 96))[0] for split in ('train2017', 'val2017', 'picture')]
    assert all((pictures[i] != pictures[j]).mean() > 0.5 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_ready_set_is_left_alone(small_set, monkeypatch, capsys):
    monkeypatch.setattr(coco, 'make_scene', lambda *_: pytest.fail('made again'))
    assert not coco.ensure_toy_coco(small_set, **SMALL)
    options = ['--seed', '3', '--train-images', '24', '--val-images', '40']
    assert synthetic(['coco', '--out', str(small_set), *options]) == 0
    assert 'nothing to do' in capsys.readouterr().out


def test_other_parameters_are_refused_unless_forced(tmp_path):
    root = tmp_path / 'set'
    few = dict(train_images=2, val_images=1, size=(64, 96), quiet=True)
    coco.ensure_toy_coco(root, **few)
    before = file_hashes(root)
    with pytest.raises(DataError, match=r"\{'seed'.*0\}.*\{'seed'.*1\}.*--force"):
        coco.ensure_toy_coco(root, seed=1, **few)
    assert file_hashes(root) == before
    assert coco.ensure_toy_coco(root, seed=1, force=True, **few)
    assert file_hashes(root) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.set.lock', 'set']


@pytest.mark.parametrize('force', [False, True])
def test_a_folder_of_another_origin_is_never_replaced(tmp_path, force):
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / 'mine.txt').write_text('x')
    with pytest.raises(DataError, match='not a generated set'):
        coco.ensure_toy_coco(tmp_path / 'set', force=force, **SMALL)
    assert (tmp_path / 'set' / 'mine.txt').read_text() == 'x'
    assert [path.name for path in tmp_path.iterdir()] == ['set']
    with pytest.raises(UsageError, match='the folder /proc cannot be written'):
        coco.ensure_toy_coco(Path('/proc/set'), force=force, **SMALL)


def test_a_set_that_lost_a_picture_is_found_out(tmp_path):
    few = dict(train_images=2, val_images=1, size=(64, 64), quiet=True)
    coco.ensure_toy_coco(tmp_path / 'set', **few)
    (tmp_path / 'set' / 'train2017' / '000000000002.jpg').unlink()
    with pytest.raises(DataError, match=r'1.*train2017/000000000002\.jpg'):
        coco.ensure_toy_coco(tmp_path / 'set', **few)


def test_leavings_of_an_interrupted_run_are_not_used(tmp_path, small_set):
    staging.staging_folder(tmp_path / 'set').mkdir()
    (staging.staging_folder(tmp_path / 'set') / 'stray.jpg').write_text('x')
    coco.ensure_toy_coco(tmp_path / 'set', **SMALL)
    assert file_hashes(tmp_path / 'set') == file_hashes(small_set)


def test_a_killed_run_leaves_no_set_and_the_next_one_works(tmp_path):
    root = tmp_path / 'set'
    tool = [sys.executable, '-m', 'mmdeploy_ext', 'synthetic', 'coco']
    command = [*tool, '--out', str(root), '--train-images', '5000']
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as job:
        deadline = time.monotonic() + 20
        while not list(staging.staging_folder(root).glob('train2017/*.jpg')) and time.monotonic() < deadline:
            time.sleep(0.05)
        job.send_signal(signal.SIGKILL)
    assert staging.staging_folder(root).exists()
    assert not root.exists()
    assert coco.ensure_toy_coco(root, train_images=2, val_images=2, quiet=True)


def test_a_link_to_the_folder_stays_and_its_set_is_replaced(tmp_path):
    few = dict(train_images=1, val_images=1, quiet=True, force=True)
    (tmp_path / 'disk' / 'set').mkdir(parents=True)
    link = tmp_path / 'link'
    link.symlink_to(tmp_path / 'disk' / 'set')
    for seed in (0, 1):
        assert coco.ensure_toy_coco(link, seed=seed, **few)
        manifest = json.loads((tmp_path / 'disk' / 'set' / staging.MANIFEST).read_text())
        assert link.is_symlink() and manifest['parameters']['seed'] == seed
    assert sorted(path.name for path in (tmp_path / 'disk').iterdir()) == ['.set.lock', 'set']
    assert list(tmp_path.glob('.*')) == []


def test_of_two_at_once_one_makes_the_set(tmp_path):
    few = dict(train_images=4, val_images=2, quiet=True)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(coco.ensure_toy_coco, tmp_path / 'set', **few) for _ in range(2)]
    assert sorted(job.result() for job in jobs) == [False, True]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--seed', '-1'], '--seed: got -1'),
        (['--val-images', '0'], '--val-images: got 0'),
        (['--size', '32', '256'], '--size: got 32 256'),
        (['--shapes', '3'], '--shapes 3: goes with --picture'),
        (['--picture', 'a.jpg', '--shapes', '-3'], '--shapes -3: expected 0 or more'),
        (['--picture', 'a.gif'], '--picture a.gif: expected a .jpg file'),
        (['--out', '.'], '.: is the working directory'),
    ],
)
def test_bad_options_end_with_one_line_and_status_2(tmp_path, capsys, options, message):
    assert synthetic(['coco', '--out', str(tmp_path / 'set'), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ') and message in captured.err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError):
        coco.ensure_toy_coco(tmp_path / 'set', size=(32, 256))


def test_pictures_fit_their_records_and_vary(small_set):
    for split in ('train', 'val'):
        index = COCO(annotation_file(small_set, split))
        sizes = set()
        for record in index.dataset['images']:
            picture = cv2.imread(str(small_set / f'{split}2017' / record['file_name']))
            assert picture.shape == (record['height'], record['width'], 3)
            assert picture.std() > 3
            sizes.add(picture.shape)
        empty = [i for i in index.imgs if not index.getAnnIds(imgIds=i)]
        assert len(empty) >= 1
        assert len(sizes) >= 3


def test_areas_cover_the_three_bins_of_coco(small_set):
    content = json.loads(Path(annotation_file(small_set, 'val')).read_text())
    areas = np.array([annotation['area'] for annotation in content['annotations']])
    shares = np.histogram(areas, [0, 32**2, 96**2, 1e9])[0] / len(areas)
    assert len(areas) >= 100
    assert (shares >= 0.1).all(), shares
    assert {annotation['category_id'] for annotation in content['annotations']} == {1, 2, 3, 4, 5, 6}


def test_masks_boxes_and_areas_agree_and_do_not_overlap(small_set):
    index = COCO(annotation_file(small_set, 'val'))
    for image_id, record in index.imgs.items():
        taken = np.zeros((record['height'], record['width']), int)
        for annotation in index.loadAnns(index.getAnnIds(imgIds=image_id)):
            mask = index.annToMask(annotation)
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation['bbox']
            assert [columns.min(), rows.min()] == [x, y]
            assert [np.ptp(columns) + 1, np.ptp(rows) + 1] == [width, height]
            assert mask.sum() == annotation['area'] >= scene.MIN_PIXELS
            taken += mask
        assert taken.max(initial=0) <= 1


def test_instances_are_seen_to_a_quarter_at_least_and_some_are_hidden_in_part():
    rng = np.random.default_rng(0)
    instances = [instance for _ in range(30) for instance in scene.layout(rng, 128, 160, 9)]
    shares = np.array([i.mask.sum() / (i.alpha >= 128).sum() for i in instances])
    assert shares.min() >= 0.9 * scene.MIN_VISIBLE  # the drawn shape is half a pixel wider than its outline
    assert (shares < 0.9).mean() > 0.1
    assert (shares == 1).mean() > 0.3


@pytest.mark.parametrize('name', scene.CLASSES)
def test_a_placed_outline_has_the_area_asked_for(name):
    outline = scene.OUTLINES[name]
    loops = scene.place_outline(outline, (100, 100), side=50, aspect=1.2, angle=0.7, max_radius=95)
    assert scene.outline_area(loops) == pytest.approx(2500)
    edge = sum(np.linalg.norm(loop - np.roll(loop, 1, axis=0), axis=1).sum() for loop in loops)
    drawn = (scene.coverage(loops, 200, 200) >= 128).sum()
    assert 2500 - 0.1 * edge < drawn < 2500 + 0.75 * edge


def test_a_ring_shows_what_is_behind_its_hole():
    loops = scene.place_outline(scene.OUTLINES['ring'], (50, 50), side=40, aspect=1, angle=0, max_radius=50)
    assert scene.coverage(loops, 100, 100)[50, 50] == 0


def test_one_size_can_be_asked_for(tmp_path):
    coco.ensure_toy_coco(tmp_path / 'set', train_images=3, val_images=3, size=(96, 128), quiet=True)
    images = COCO(annotation_file(tmp_path / 'set', 'train')).dataset['images']
    assert {(image['height'], image['width']) for image in images} == {(96, 128)}


def test_a_single_picture_can_be_asked_for(tmp_path):
    options = ['--size', '360', '480', '--shapes', '10', '--seed', '6']
    assert synthetic(['coco', '--picture', str(tmp_path / 'a.jpg'), *options]) == 0
    assert cv2.imread(str(tmp_path / 'a.jpg')).shape == (360, 480, 3)
    assert [path.name for path in tmp_path.iterdir()] == ['a.jpg']


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_pycocotools_gives_the_ground_truth_itself_ap_1(small_set, kind):
    truth = COCO(annotation_file(small_set, 'val'))
    detections = [
        {
            **{key: annotation[key] for key in ('image_id', 'category_id', 'bbox')},
            'score': 0.9,
            **({'segmentation': annotation['segmentation']} if kind == 'segm' else {}),
        }
        for annotation in truth.dataset['annotations']
    ]
    evaluation = COCOeval(truth, truth.loadRes(detections), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


@pytest.fixture(scope='module')
def val_dataset(small_set):
    from mmdeploy_ext import compat

    compat.apply()
    from mmdet.datasets import build_dataset

    from mmdeploy_ext.core.config import load_config

    data = load_config(str(REPOSITORY / 'configs/_base_/datasets/toy_coco.py')).data.val
    assert tuple(data.classes) == scene.CLASSES
    data.ann_file, data.img_prefix = annotation_file(small_set, 'val'), str(small_set / 'val2017')
    return build_dataset(data, {'test_mode': True})


def test_mmdet_reads_the_set_and_gives_the_ground_truth_ap_1(val_dataset):
    results = []
    for index in range(len(val_dataset)):
        truth = val_dataset.get_ann_info(index)
        boxes = np.concatenate([truth['bboxes'], np.full((len(truth['bboxes']), 1), 0.9)], axis=1)
        per_class = [np.flatnonzero(truth['labels'] == label) for label in range(len(scene.CLASSES))]
        masks = [mask_codec.encode(np.asfortranarray(mask_codec.decode(rle))) for rle in truth['masks']]
        results.append(
            ([boxes[chosen] for chosen in per_class], [[masks[i] for i in chosen] for chosen in per_class])
        )
    metrics = val_dataset.evaluate(results, metric=['bbox', 'segm'])
    assert metrics['bbox_mAP'] == pytest.approx(1.0)
    assert metrics['segm_mAP'] == pytest.approx(1.0)


def test_the_test_pipeline_pads_to_32_and_keeps_the_ratio(val_dataset):
    for index in range(8):
        sample = val_dataset[index]
        meta = sample['img_metas'][0].data
        assert all(side % 32 == 0 for side in sample['img'][0].shape[-2:])
        assert max(meta['img_shape'][:2]) <= 320 and min(meta['img_shape'][:2]) <= 256
        assert meta['scale_factor'][0] == pytest.approx(meta['scale_factor'][1], rel=0.01)
