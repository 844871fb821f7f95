"""The reference of every family of pictures is the user's model through its own test path."""

import dataclasses

import numpy as np
import pytest

import toy_query
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.common.mmdet_reference import boxes_of_classes
from mmdeploy_ext.proving.not_shown import untraced_methods
from toy_atss import REPO


def demo(name):
    return lambda: load_config(str(REPO / f'configs/demo/{name}_toy.py'))


CONFIGS = dict(
    dense=demo('atss'),
    solo=demo('decoupled_solo'),
    rtdetr=demo('rtdetr'),
    two_stage=demo('mask_rcnn'),
    query=toy_query.toy,
    mask2former=lambda: toy_query.toy('instances'),
    sparse_rcnn=lambda: toy_query.toy('regions'),
)
"""A family's class of reference -> config of a toy."""


class Called(Exception):
    """What a method of the user's raises here."""


@pytest.mark.parametrize('name', CONFIGS)
def test_results_come_from_the_detectors_own_forward(name, monkeypatch):
    cfg = CONFIGS[name]()
    family = find_family(cfg)
    model = family.build(cfg)
    size = (256, 256)
    (image,) = toy_query.images(1, size)
    image = dataclasses.replace(image, img_shape=size)
    seen = {}

    def forward(self, **data):
        seen.update(data)
        raise Called

    monkeypatch.setattr(type(model), 'forward', forward)
    with pytest.raises(Called):
        family.reference(model).results([image], True)
    ((meta,),) = seen['img_metas']
    assert seen['return_loss'] is False and [one.shape for one in seen['img']] == [(1, 3, *size)]
    assert {'filename', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip'} <= set(meta)
    (method,) = untraced_methods(family, model, cfg)
    assert method.subject.startswith(f'{type(model).__name__}.forward (')


def test_results_of_another_form_than_boxes_of_each_class_are_refused_by_name():
    boxes = [np.zeros((1, 5), np.float32), np.zeros((0, 5), np.float32)]
    with pytest.raises(ConfigError, match='tuple of list'):
        boxes_of_classes((boxes, [np.zeros((2, 5), np.float32)]))
