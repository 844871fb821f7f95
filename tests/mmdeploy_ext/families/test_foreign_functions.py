"""A plugin that changes functions of a library, or registers its steps anew, is named: inputs decide then."""

import functools
import importlib
import sys

import pytest
from mmdet.datasets.builder import PIPELINES
from mmdet.datasets.pipelines import Resize
from mmdet.models.dense_heads import base_dense_head

from mmdeploy_ext.core.foreign_functions import foreign_functions
from mmdeploy_ext.exporting import deployment
from toy_atss import CHECKPOINT, CONFIG

nms = importlib.import_module('mmcv.ops.nms')
mmcv = sys.modules['mmcv']


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
    ],
)
def test_a_function_of_a_plugin_in_the_place_of_a_librarys_is_named(monkeypatch, owner, name, named):
    monkeypatch.setattr(owner, name, around(getattr(owner, name)))
    assert f'{named}.{name}' in differing()


def test_a_step_of_a_plugin_under_the_name_of_a_librarys_is_named(monkeypatch):
    monkeypatch.setitem(PIPELINES.module_dict, 'Resize', OtherResize)
    assert differing() == {'Resize'}


def test_functions_of_packages_and_of_this_project_are_not_foreign():
    assert differing() == set()
    assert foreign_functions([around, len, Resize.__call__, base_dense_head.BaseDenseHead.get_bboxes]) == {}
