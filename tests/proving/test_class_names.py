"""Names of classes in another order than those of checkpoint, data set or config are not proven."""

import types

import pytest
from mmdet.datasets.builder import DATASETS
from mmdet.datasets.custom import CustomDataset

from mmdeploy_ext.families.detector import class_names, unfitting_names
from mmdeploy_ext.proving.provenance import class_name_notes, class_names_check
from mmdeploy_ext.spec.results import Check
from mmdeploy_ext.spec.verdict import check_finding
from mmdeploy_ext.upstream.weights.checkpoint import with_class_names

CLASSES = ('dog', 'cat', 'ant')


def detector(cfg=None, meta=None, count=3):
    report = None if meta is None else types.SimpleNamespace(meta=with_class_names(meta))
    classes = class_names(cfg or {}, with_class_names(meta or {}), count)
    return types.SimpleNamespace(cfg=cfg or {}, report=report, classes=classes)


def data(**test):
    return dict(data=dict(test=test))


SOURCES = {
    'checkpoint': (data(type='CocoDataset', classes=('x', 'y', 'z')), dict(CLASSES=CLASSES)),
    'checkpoint of mmengine': ({}, dict(dataset_meta=dict(classes=CLASSES), CLASSES=CLASSES)),
    'data set': (data(type='CocoDataset', classes=list(CLASSES)), dict(CLASSES=('of', 'another'))),
    'list of data sets': (dict(data=dict(test=[dict(type='CocoDataset', classes=CLASSES)])), {}),
    'wrapped data set': (data(type='RepeatDataset', dataset=dict(type='CocoDataset', classes=CLASSES)), {}),
    'config': (dict(classes=CLASSES, class_names=('x', 'y', 'z')), {}),
    'config in 3D': (dict(class_names=CLASSES), None),
}


@pytest.mark.parametrize('source', SOURCES)
def test_names_of_every_source_are_those_of_the_file_in_their_order(source):
    cfg, meta = SOURCES[source]
    assert class_names(cfg, meta or {}, 3) == CLASSES
    assert class_names_check(detector(cfg, meta), CLASSES).passed
    for wrong in (sorted(CLASSES), CLASSES[:2], (*CLASSES, 'bee'), ('Dog', 'cat', 'ant'), ()):
        assert not class_names_check(detector(cfg, meta), wrong).passed


def test_a_word_that_the_users_data_set_looks_up_is_not_taken_for_a_file(monkeypatch):
    class Split(CustomDataset):
        CLASSES = CLASSES

        def get_classes(self, classes):
            return dict(BASE_CLASSES=CLASSES)[classes]

    monkeypatch.setitem(DATASETS.module_dict, 'Split', Split)
    assert class_names(data(type='Split', classes='BASE_CLASSES'), {}, 3) == CLASSES


def test_names_in_a_file_and_those_of_a_published_data_set(tmp_path):
    path = tmp_path / 'names.txt'
    path.write_text('\n'.join(CLASSES))
    cfg = data(type='CocoDataset', classes=str(path))
    assert class_names(cfg, {}, 3) == CLASSES and class_names_check(detector(cfg), CLASSES).passed
    cfg = data(type='CityscapesDataset')
    names = class_names(cfg, {}, 8)
    assert names[0] == 'person' and class_names_check(detector(cfg, count=8), names).passed
    assert not class_names_check(detector(cfg, count=8), sorted(names)).passed
    assert class_names({}, {}, 2) == ('class 0', 'class 1')
    assert class_names_check(detector(count=2), ('class 0', 'class 1')).passed
    assert not class_names_check(detector(count=2), ('class 1', 'class 2')).passed


@pytest.mark.parametrize(
    ('cfg', 'meta', 'source'),
    [
        ({}, dict(CLASSES=('x', 'y')), 'the checkpoint names 2'),
        (data(type='CocoDataset', classes=('x', 'y')), {}, 'data.test.classes names 2'),
        (dict(classes=('x', 'y')), {}, 'classes of the config names 2'),
        (dict(class_names=[]), dict(CLASSES=CLASSES), 'class_names of the config names 0'),
        (data(type='CocoDataset'), {}, 'CocoDataset of data.test names 80'),
    ],
)
def test_names_that_do_not_fit_the_model_are_noted_with_their_source(cfg, meta, source):
    (note,) = class_name_notes(detector(cfg, meta))
    assert 'the model has 3 classes' in note and source in note


def test_names_that_fit_and_published_ones_beside_them_are_not_noted(tmp_path):
    fitting = data(type='CocoDataset', classes=CLASSES), data(type='CityscapesDataset'), {}
    assert [unfitting_names(cfg, {}, count) for cfg, count in zip(fitting, (3, 8, 3), strict=True)] == [
        []
    ] * 3
    (tmp_path / 'names.txt').write_text('one')
    assert unfitting_names(data(type='CocoDataset', classes=str(tmp_path / 'names.txt')), {}, 3)


def test_a_failed_check_does_not_read_as_its_opposite():
    held, failed = (check_finding(Check('names are equal', passed, 'x')) for passed in (True, False))
    assert held.line == 'names are equal: x' and failed.line == 'names are equal: failed, x'
