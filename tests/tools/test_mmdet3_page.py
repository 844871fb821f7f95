"""The page about mmdet 3: made from what was measured, and what counts as equal."""

import json

import numpy as np
import pytest

from docs._pages.mmdet3 import configs, page, pictures
from docs._pages.mmdet3.kinds import KINDS
from docs._pages.mmdet3.measure import DATA, compare, figures


def test_the_page_is_made_from_what_was_measured(capsys):
    assert page.main(['--check']) == 0, 'python -m docs._pages.mmdet3.page'
    rows = json.loads(DATA.read_text())['rows']
    names = [row['config'] for row in rows]
    assert names == [name for name in KINDS if name in names]
    for row in rows:
        assert page.verdict(row) == 'unmeasured' or row['matched'] + row['missing'] + row['outside'] >= 1


def test_every_difference_has_a_reason_in_both_languages():
    rows = json.loads(DATA.read_text())['rows']
    differ = {row['config'] for row in rows if page.verdict(row) in ('different', 'unmeasured')}
    for language in page.PAGES:
        assert page.words(language)['reasons'].keys() == differ


def results(count=3, masks=False):
    boxes = np.arange(count)[:, None] * 40.0 + np.array([2.0, 3.0, 30.0, 25.0])
    scores, labels = np.linspace(0.9, 0.5, count), np.arange(count)
    arrays = dict(bboxes=boxes.astype(np.float32), scores=scores, labels=labels)
    if masks:
        arrays['masks'] = np.arange(count)[:, None, None] * 10 < np.arange(400).reshape(20, 20)
    return arrays


def moved(arrays):
    arrays['bboxes'][0, 0] += 1


def smaller_mask(arrays):
    arrays['masks'][0, :10] = False


@pytest.mark.parametrize(('change', 'masks', 'equal'), [
    (lambda arrays: None, False, True),
    (lambda arrays: None, True, True),
    (moved, False, False),
    (moved, True, False),
    (smaller_mask, True, False),
    (lambda arrays: arrays['scores'].__setitem__(0, 0.95), False, False),
    (lambda arrays: arrays['labels'].__setitem__(0, 9), False, False),
    (lambda arrays: arrays.update({key: value[1:] for key, value in arrays.items()}), False, False),
])
def test_results_are_equal_only_where_all_of_them_match(change, masks, equal, tmp_path):
    np.savez(tmp_path / 'results2.npz', **results(masks=masks))
    other = results(masks=masks)
    change(other)
    np.savez(tmp_path / 'results.npz', **other)
    assert compare(tmp_path)['equal'] is equal


def test_nothing_matched_is_not_equal(tmp_path):
    for name in ('results2.npz', 'results.npz'):
        np.savez(tmp_path / name, **results(0))
    assert compare(tmp_path)['equal'] is False


def test_boxes_without_area_are_an_option_of_their_own(tmp_path):
    own = results()
    np.savez(tmp_path / 'results2.npz', **own)
    np.savez(tmp_path / 'results_keep_empty.npz', **own)
    np.savez(tmp_path / 'results.npz', **{key: value[:2] for key, value in own.items()})
    row = figures(tmp_path)
    assert not row['equal'] and row['with_option']['equal'] and page.verdict(row) == 'keep_empty'


CONFIG = """
model = dict(type='YOLOX', data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32))
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
    dict(type='PackDetInputs', meta_keys=('img_path', 'ori_shape')),
]
"""


def test_a_picture_is_what_the_translated_pipeline_gives(tmp_path, monkeypatch):
    (tmp_path / 'yolox.py').write_text(CONFIG)
    monkeypatch.setattr(pictures, 'configs3', lambda: tmp_path)
    batch = pictures.picture2('yolox.py')
    assert batch.shape == (1, 3, 64, 64) and batch.dtype == np.float32
    assert (batch[:, :, -8:] == 114).all() and 0 <= batch.min() < 100 < batch.max() <= 255


def test_what_only_training_reads_makes_no_difference_of_configs():
    config = dict(backbone=dict(depth=50, init_cfg=1), train_cfg=dict(a=1), levels=(1, 2))
    assert configs.text(config) == configs.text(dict(levels=[1, 2], backbone=dict(depth=50)))
    assert configs.text(config) != configs.text(dict(config, levels=[1, 3]))
