"""A plugin that changes functions of a library, or registers its steps anew, is named: inputs decide then."""

import functools
import importlib
import sys
import types

import pytest
import torch
from mmdet.datasets import builder
from mmdet.datasets.builder import PIPELINES
from mmdet.datasets.pipelines import Resize
from mmdet.models.dense_heads import ATSSHead, base_dense_head, yolo_head

from mmdeploy_ext.core.foreign_functions import foreign_functions
from mmdeploy_ext.core.source_code import changed_defaults
from mmdeploy_ext.exporting import deployment
from toy_atss import CHECKPOINT, CONFIG

nms = importlib.import_module('mmcv.ops.nms')
mmcv = sys.modules['mmcv']
BaseDenseHead = base_dense_head.BaseDenseHead


def around(function):
    """Return a function of a user's code that calls that of the library."""

    @functools.wraps(function)
    def changed(*args, **settings):
        return function(*args, **settings)

    return changed


class OtherResize(Resize):
    """A step that would resize large pictures in another way."""


def differing():
    return {method.name for method in deployment.load(CONFIG, CHECKPOINT).differing_methods(any_size=False)}


@pytest.mark.parametrize(
    ('owner', 'name', 'named'),
    [
        (base_dense_head, 'filter_scores_and_topk', 'mmdet.models.dense_heads.base_dense_head'),
        (nms, 'nms', 'mmcv.ops.nms'),  # which `batched_nms` calls by a text
        (mmcv, 'imrescale', 'mmcv'),  # which the step Resize calls as an attribute of the package
        (Resize, '_resize_img', 'Resize'),
        (builder, 'collate', 'mmdet.datasets.builder'),  # of the loader, which no proof runs
    ],
)
def test_a_function_of_a_plugin_in_the_place_of_a_librarys_is_named(monkeypatch, owner, name, named):
    monkeypatch.setattr(owner, name, around(getattr(owner, name)))
    assert f'{named}.{name}' in differing()


class Around:
    """An object that is called as a function of a library, and has its name and text."""

    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args, **settings):
        return self.function(*args, **settings)


@pytest.mark.parametrize(
    ('owner', 'name', 'value', 'named'),
    [
        (
            base_dense_head,
            'batched_nms',
            functools.partial(around(nms.batched_nms)),
            base_dense_head.__name__,
        ),
        (base_dense_head, 'batched_nms', nms.nms_match, base_dense_head.__name__),
        (nms, 'batched_nms', Around(nms.batched_nms), 'mmcv.ops.nms'),
        (nms, 'NMSop', type('NMSop', (nms.NMSop,), {}), 'mmcv.ops.nms'),
        (nms.NMSop, 'forward', staticmethod(around(nms.NMSop.forward)), 'mmcv.ops.nms.NMSop'),
        (BaseDenseHead, 'get_bboxes', Around(BaseDenseHead.get_bboxes), 'ATSSHead'),
        (yolo_head, 'batched_nms', nms.batched_nms, ''),
        (torch.Tensor, 'sigmoid', around(torch.Tensor.sigmoid), 'torch.Tensor'),
    ],
    ids=['partial', 'another', 'object', 'class', 'method', 'wrapper', 'its own', 'tensor'],
)
def test_what_is_no_function_and_another_of_the_library_in_its_place_are_named(
    monkeypatch, owner, name, value, named
):
    monkeypatch.setattr(owner, name, value, raising=False)
    assert differing() == ({f'{named}.{name}'} if named else set())


@pytest.mark.parametrize(
    ('name', 'value'), [('batched_nms', around(nms.batched_nms)), ('torch', types.ModuleType('torch'))]
)
def test_a_copy_of_a_method_that_means_something_else_by_the_same_name_is_named(monkeypatch, name, value):
    method = BaseDenseHead._bbox_post_process

    def head_of(names):
        names = {**method.__globals__, '__name__': 'users_head', **names}
        copy = types.FunctionType(method.__code__, names, method.__name__, method.__defaults__)
        return type('UsersHead', (ATSSHead,), dict(_bbox_post_process=copy))

    loaded = deployment.load(CONFIG, CHECKPOINT)
    for names, expected in (({}, []), ({name: value}, [f'users_head.{name}'])):
        monkeypatch.setattr(loaded.model.bbox_head, '__class__', head_of(names))
        assert [entry.name for entry in loaded.differing_methods(any_size=False)] == expected


def test_other_default_values_of_a_librarys_function_are_named(monkeypatch):
    monkeypatch.setattr(nms.batched_nms, '__defaults__', (True,))
    assert 'mmcv.ops.nms.batched_nms.__defaults__' in differing()
    monkeypatch.setattr(nms.batched_nms, '__defaults__', (False,))
    assert differing() == set()
    method = BaseDenseHead._bbox_post_process
    monkeypatch.setattr(method, '__defaults__', (*method.__defaults__[:-1], 'other'))
    assert 'ATSSHead._bbox_post_process' in differing()


def test_defaults_are_compared_with_the_literals_of_the_definition(tmp_path, monkeypatch):
    (tmp_path / 'defaults_of_mine.py').write_text(
        'import math\n\ndef f(a, b=-1, c=(1, 2.0), d=math.inf, *, e="e", g=dict(k=None), h):\n    return a\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module('defaults_of_mine').f
    assert changed_defaults(function) == {}
    function.__defaults__ = (-1, (1, 2), 3.0)
    function.__kwdefaults__['g']['k'] = 1
    function.__kwdefaults__['h'] = 0
    assert changed_defaults(function) == {'c': (1, 2), 'g': {'k': 1}, 'h': 0}
    assert changed_defaults(eval('lambda x=1: x')) == {}


def test_a_step_of_a_plugin_under_the_name_of_a_librarys_is_named(monkeypatch):
    monkeypatch.setitem(PIPELINES.module_dict, 'Resize', OtherResize)
    assert differing() == {'Resize'}


def test_functions_of_packages_and_of_this_project_are_not_foreign():
    assert differing() == set()
    assert foreign_functions([around, len, Resize.__call__, BaseDenseHead.get_bboxes]) == {}


def test_a_property_and_the_construction_of_boxes_that_a_head_makes_are_named(monkeypatch):
    from mmdet3d.core.bbox.structures import BaseInstance3DBoxes, LiDARInstance3DBoxes
    from mmdet3d.models.dense_heads import Anchor3DHead, CenterHead

    heads = [Anchor3DHead.get_bboxes_single, CenterHead.get_task_detections]
    assert not foreign_functions(heads)
    original, construct = LiDARInstance3DBoxes.bev.fget, BaseInstance3DBoxes.__init__
    wide = property(lambda self: original(self) * (1 if len(self.tensor) < 5000 else 2))
    monkeypatch.setattr(LiDARInstance3DBoxes, 'bev', wide)
    monkeypatch.setattr(BaseInstance3DBoxes, '__init__', lambda *args, **keys: construct(*args, **keys))
    monkeypatch.setattr(
        LiDARInstance3DBoxes, 'corners', property(lambda self: None)
    )  # which no head asks for
    for head in heads:
        named = {name.rpartition('.structures.')[2] for name in foreign_functions([head])}
        assert named == {
            'lidar_box3d.LiDARInstance3DBoxes.bev',
            'base_box3d.BaseInstance3DBoxes.__init__',
        }
