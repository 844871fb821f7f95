"""Limits of rows, for each kind of head: one is lowered and the others are opened, so that it decides.

Both sides have the same limits, as `--cfg-options` gives them. The file is proven as any other; a file whose
graph has one row less is not. A user's proof shows such a fault only where a picture reaches the limit.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from types import SimpleNamespace
from unittest import mock

import pytest

import toy_anchor3d
import toy_centerpoint
import toy_corner
import toy_query
import toy_two_stage
import toy_yolact
from image_checks import seeded_detector
from marking import in_suite
from mmdeploy_ext.base.config import replaced_entry, without_augmentation
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families.common.lidar_parts import parts_of
from mmdeploy_ext.proving.pictures import references
from mmdeploy_ext.runtime.detect import runtime_of
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.runtime.tasks import bbox3d
from proofs import run_cases
from toy_atss import PICTURE, export_toy, load_demo

PICTURES = [('toy.jpg', read_image(PICTURE))]
SIZE = dict(height=96, width=128, opset=17)


SEEDED = {
    'rpn': lambda: toy_two_stage.toy('rpn'),
    'mask2former': lambda: toy_query.toy('instances'),
    'sparse_rcnn': lambda: toy_query.toy('regions'),
    'yolact': toy_yolact.toy,
    'corner': toy_corner.toy,
}


@functools.cache
def load(name):
    """Return a toy with the trained weights of the demo, or with seeded ones."""
    if name not in SEEDED:
        return load_demo(name)
    cfg = SEEDED[name]()
    without_augmentation(cfg)
    return seeded_detector(cfg)


DENSE = dict(score_thr=0.001, nms_pre=3000, max_per_img=1000)
RPN = dict(nms_pre=3000, max_per_img=1000)
RCNN = dict(score_thr=0.001, max_per_img=1000)
YOLACT = dict(score_thr=0.001, nms_pre=1000, top_k=100, max_per_img=20)
SOLO = dict(score_thr=0.01, filter_thr=0.001, nms_pre=500, max_per_img=100)
HEADS = {
    'atss': {'bbox_head.test_cfg': (DENSE, dict(nms_pre=20, max_per_img=10))},
    'mask_rcnn': {
        'rpn_head.test_cfg': (RPN, dict(nms_pre=3, max_per_img=50)),
        'roi_head.test_cfg': (RCNN, dict(max_per_img=10)),
    },
    'deformable_detr': {'bbox_head.test_cfg': ({}, dict(max_per_img=10))},
    'rtdetr': {'postprocess': ({}, dict(max_per_img=10))},
    'rpn': {'rpn_head.test_cfg': (RPN, dict(nms_pre=20, max_per_img=50))},
    'sparse_rcnn': {'roi_head.test_cfg': ({}, dict(max_per_img=10))},
    'mask2former': {'panoptic_fusion_head.test_cfg': ({}, dict(max_per_image=10))},
    'yolact': {'bbox_head.test_cfg': (YOLACT, dict(nms_pre=3, top_k=5, max_per_img=10))},
    'corner': {
        'bbox_head.test_cfg': (dict(corner_topk=60, max_per_img=200), dict(corner_topk=34, max_per_img=10))
    },
    'solov2': {'mask_head.test_cfg': (SOLO, dict(nms_pre=3, max_per_img=2))},
}
"""Toy -> settings of a part of the model -> values that open its limits, and values that lower one each."""
CASES = [
    (name, settings, key)
    for name, parts in HEADS.items()
    for settings, (_, lowered) in parts.items()
    for key in lowered
]


def settings_of(model, path):
    """Return the live settings at a path: a `test_cfg`, or the attributes of a module."""
    found = functools.reduce(getattr, path.split('.'), model)
    return found if isinstance(found, dict) else vars(found)


@contextlib.contextmanager
def changed(entries, **values):
    """Inside the block settings have other values."""
    with contextlib.ExitStack() as stack:
        for key, value in values.items():
            stack.enter_context(replaced_entry(entries, key, value))
        yield


@contextlib.contextmanager
def one_row_less(family, path, key):
    """Inside the block what is exported has a limit that is one lower than the model's."""
    family = getattr(family, 'plain', family)  # behind one that remembers results

    def wrong(method):
        def made(model, *args):  # the model or the copy that is exported
            entries = settings_of(model, path)
            with changed(entries, **{key: entries[key] - 1}):
                return copy.deepcopy(method(model, *args))  # modules may read it when they run

        return made

    with contextlib.ExitStack() as stack:
        for name in ('spec', 'stages', 'facts'):
            stack.enter_context(mock.patch.object(family, name, wrong(getattr(family, name)), create=True))
        yield


def refuted(computed, file):
    """Return why a file is not proven on some inputs, [] if it is."""
    with build_backend('OnnxRuntimeBackend', file) as backend:
        cases = list(run_cases(computed, backend))
    rows = [row for case in cases for row in case.detections]
    alone = [f'{row.low_alone} low results alone' for row in rows if row.low_alone]
    return [reason for case in cases for reason in case.failures] + alone


def name_of(case):
    name, settings, key = case
    return f'{name}-{settings.split("_")[0]}-{key}'


@pytest.mark.matrix
@pytest.mark.parametrize('case', CASES, ids=name_of)
def test_a_lowered_limit_is_proven_and_one_row_less_is_not(case, tmp_path):
    name, path, key = case
    detector = load(name)
    with contextlib.ExitStack() as stack:
        for settings, (opened, _) in HEADS[name].items():
            stack.enter_context(changed(settings_of(detector.model, settings), **opened))
        lowered = HEADS[name][path][1][key]
        stack.enter_context(changed(settings_of(detector.model, path), **{key: lowered}))
        file = export_toy(detector, tmp_path / 'right.onnx', dynamic=False, **SIZE)
        computed = references(detector, detector.family.choose(**SIZE), PICTURES)
        assert refuted(computed, file) == []
        with one_row_less(detector.family, path, key):
            file = export_toy(detector, tmp_path / 'wrong.onnx', dynamic=False, **SIZE)
        assert refuted(computed, file)


@functools.cache
def outputs_of(name):
    """Return a LiDAR toy, its reference, and outputs of the head for a sweep."""
    detector, *_ = toy_anchor3d.exported(name) if name == 'pointpillars' else toy_centerpoint.exported(name)
    reference = detector.family.reference(detector.model)
    points = toy_centerpoint.sweep(0, 1200)[:, : reference.width]
    outputs = reference.step(Sweep(points)).outputs
    return detector, reference, {name: outputs[name] for name in outputs if name[-1].isdigit()}


@pytest.mark.parametrize(
    ('name', 'key', 'limit'),
    in_suite(
        [
            ('pointpillars', 'nms_pre', 20),
            ('pointpillars', 'max_num', 5),
            ('oblong', 'max_num', 20),
            ('oblong', 'post_max_size', 3),
        ],
        ('pointpillars', 'max_num', 5),
    ),
    ids=str,
)
def test_a_lowered_limit_of_a_runtime_is_that_of_the_head_and_one_row_less_is_not(name, key, limit):
    detector, reference, outputs = outputs_of(name)
    model, family = detector.model, detector.family
    head = parts_of(model).head
    with changed(head.test_cfg if key in head.test_cfg else vars(head.bbox_coder), **{key: limit}):
        expected, facts = reference.boxes_of(outputs), family.facts(model)
    assert getattr(facts, key) == limit
    for less in (0, 1):
        metadata = SimpleNamespace(postprocess=dataclasses.replace(facts, **{key: limit - less}))
        boxes = runtime_of(family.name).boxes_of_outputs(metadata, outputs)
        row = bbox3d.match_detections('boxes', expected, boxes)
        assert (row.passed and not row.low_alone) == (not less)
