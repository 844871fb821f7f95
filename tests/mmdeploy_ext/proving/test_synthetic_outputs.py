"""Synthetic outputs of heads reach limits, thresholds and ends of turns that samples do not."""

import dataclasses
import functools

import numpy as np
import pytest

import toy_anchor3d
import toy_centerpoint
import toy_streampetr_deploy as petr
import toy_streampetr_export as petr_files
from mmdeploy_ext.families.anchor3d import runtime as anchors
from mmdeploy_ext.families.centerpoint import runtime as points
from mmdeploy_ext.families.parts.runtime import anchors3d, query_boxes
from mmdeploy_ext.families.streampetr.runtime import model as streams
from mmdeploy_ext.proving.levels.synthetic import cases_of_family
from mmdeploy_ext.runtime.detections3d import Detections3D
from planting import altered


def opened(deployment, files):
    family = deployment.family
    runner = family.runner([str(file) for file in files], {})
    reference = family.reference(deployment.model)
    spec = (runner.head if hasattr(runner, 'head') else runner).metadata.spec
    return family, deployment.model, reference, runner, spec


@functools.cache
def toy(name, folder=None):
    """Return what `cases_of_family` takes of one toy, made once."""
    if name == 'streampetr':
        return opened(petr.deployment(), petr_files.write(folder))
    deployment, folder, *_ = (
        toy_centerpoint.exported(name.split()[-1]) if 'centers' in name else toy_anchor3d.exported(name)
    )
    return opened(deployment, [folder / f'{part}.onnx' for part in ('backbone', 'head')])


@pytest.fixture(scope='module')
def cases_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp('streampetr')
    return lambda name: list(cases_of_family(*toy(name, folder if name == 'streampetr' else None)))


def reasons(cases):
    return '; '.join(row.reason for case in cases for row in case.detections if not row.passed)


@pytest.mark.suite('streampetr', 'centers sparse', 'kitti')
@pytest.mark.parametrize(
    'name', ['centers sparse', 'centers pillars', 'kitti', 'nuscenes', 'shapes', 'streampetr']
)
def test_both_decodings_give_the_same_boxes(name, cases_of):
    cases = cases_of(name)
    assert len(cases) >= 3 and not reasons(cases)
    assert sum(row.matched for case in cases for row in case.detections) > 30


def near_the_end(change):
    """Return what changes headings within 6 mrad of the end of a turn."""

    def make(original):
        def decode(*args):
            found = original(*args)
            near = np.abs(np.abs(found.boxes[:, 6]) - np.pi) < 6e-3
            found.boxes[near, 6] = change(found.boxes[near, 6])
            return found

        return decode

    return make


def without_a_turn(headings):
    return headings - np.sign(headings) * 2 * np.float32(np.pi)


def capped(most):
    return lambda original: lambda values, count: original(values, min(count, most))


def boxes_on_nothing(original):
    def decode(*args):
        found = original(*args)
        if len(found) and found.scores.max() > 0.1:
            return found
        boxes = np.tile(np.float32([1, 2, 0, 4, 2, 1, 0, 0, 0]), (100, 1))
        return Detections3D(boxes, np.full(100, 0.9, np.float32), np.zeros(100, np.int64))

    return decode


def less(**changes):
    """Return what decodes by another rule: field -> change."""

    def make(original):
        def decode(outputs, rule):
            values = {name: change(getattr(rule, name)) for name, change in changes.items()}
            return original(outputs, dataclasses.replace(rule, **values))

        return decode

    return make


def of_best_classes(original):
    def boxes(named, rule):
        heat = named['heatmap']
        best = np.where(heat == heat.max(1, keepdims=True), heat, np.float32(-99))
        return original({**named, 'heatmap': best}, rule)

    return boxes


def decoding(runtime, change):
    """Return a fault of what the runtime of centers or anchors decodes with."""
    from mmdeploy_ext.families.anchor3d.runtime import AnchorOnnx
    from mmdeploy_ext.families.centerpoint.runtime import CenterPointOnnx

    kind = CenterPointOnnx if runtime is points else AnchorOnnx
    return lambda patch: patch.setattr(kind, 'decode', staticmethod(change(kind.decode)))


def with_facts(**changes):
    """Return what decodes by other facts: entry -> change."""

    def make(original):
        def decode(scores, boxes, facts):
            return original(
                scores, boxes, facts | {name: change(facts[name]) for name, change in changes.items()}
            )

        return decode

    return make


def turned_back_once(original):
    """Return a fault of yaws: those beyond the next half circle stay there."""

    def turned_yaw(xp, yaw, turned, rule):
        far = xp.floor((yaw - rule.dir_offset) / anchors3d.PI + rule.dir_limit_offset)
        return original(xp, yaw, turned, rule) + anchors3d.PI * (far - xp.clip(far, -1, 1))

    return turned_yaw


def no_higher_than_ten_metres(original):
    def boxes(named, rule):
        candidates = original(named, rule)
        candidates.boxes[:, 5] = np.minimum(candidates.boxes[:, 5], 10)
        return candidates

    return boxes


FAULTS = {
    'centers: heights': ('centers sparse', altered(points, 'task_boxes', no_higher_than_ten_metres)),
    'ranges with maps of their own: nms_pre': ('shapes', decoding(anchors, less(nms_pre=lambda one: 0))),
    'centers: a heading at the end': ('centers sparse', decoding(points, near_the_end(np.zeros_like))),
    'centers: a turn more': ('centers sparse', decoding(points, near_the_end(without_a_turn))),
    'centers: max_num': ('centers sparse', altered(points, 'top_rows', capped(30))),
    'centers: 200 peaks at most': ('centers sparse', altered(points, 'top_rows', capped(200))),
    'centers: the best class of a cell': ('centers sparse', altered(points, 'task_boxes', of_best_classes)),
    'centers: nothing': ('centers sparse', decoding(points, boxes_on_nothing)),
    'centers: score_threshold': (
        'centers sparse',
        decoding(
            points, less(score_threshold=lambda one: one * 1.02, nms_score_threshold=lambda one: one * 1.02)
        ),
    ),
    'centers: nms_thr': ('centers sparse', decoding(points, less(nms_thr=lambda one: one + 0.2))),
    'centers: post_max_size': ('centers sparse', decoding(points, less(post_max_size=lambda one: one - 1))),
    'centers: pre_max_size': ('centers sparse', decoding(points, less(pre_max_size=lambda one: one - 10))),
    'centers: range': (
        'centers sparse',
        decoding(points, less(post_center_range=lambda one: (*one[:5], one[5] - 0.1))),
    ),
    'anchors: a heading at the end': ('kitti', decoding(anchors, near_the_end(np.zeros_like))),
    'anchors: a turn more': ('kitti', altered(anchors3d, 'turned_yaw', turned_back_once)),
    'anchors: max_num': ('kitti', decoding(anchors, less(max_num=lambda one: one - 5))),
    'anchors: nms_pre': ('kitti', decoding(anchors, less(nms_pre=lambda one: one // 2))),
    'anchors: nms_pre one less': ('kitti', decoding(anchors, less(nms_pre=lambda one: one - 1))),
    'anchors: max_num is 60 at most': ('kitti', decoding(anchors, less(max_num=lambda one: min(one, 60)))),
    'anchors: score_thr': ('kitti', decoding(anchors, less(score_thr=lambda one: one * 1.02))),
    'anchors: directions': ('kitti', decoding(anchors, less(dir_limit_offset=lambda one: one + 0.003))),
    'anchors: nothing': ('kitti', decoding(anchors, boxes_on_nothing)),
    'queries: a heading at the end': ('streampetr', altered(streams, 'decode', near_the_end(np.zeros_like))),
    'queries: a turn more': ('streampetr', altered(streams, 'decode', near_the_end(without_a_turn))),
    'queries: max_num': ('streampetr', altered(query_boxes, 'top_rows', capped(16))),
    'queries: the score threshold is forgotten': (
        'streampetr',
        altered(streams, 'decode', with_facts(score_threshold=lambda one: None)),
    ),
    'queries: max_num is 20 at most': (
        'streampetr',
        altered(streams, 'decode', with_facts(max_num=lambda one: min(one, 20))),
    ),
    'queries: nothing': ('streampetr', altered(streams, 'decode', boxes_on_nothing)),
}


@pytest.mark.suite(
    'centers: nms_thr', 'centers: heights', 'centers: a turn more', 'anchors: directions',
    'anchors: max_num', 'anchors: nothing', 'anchors: nms_pre one less',
    'ranges with maps of their own: nms_pre', 'queries: max_num', 'queries: max_num is 20 at most',
    'queries: nothing', 'queries: the score threshold is forgotten',
)  # fmt: skip
@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_of_the_decoding_is_refused(fault, cases_of, monkeypatch):
    name, plant = FAULTS[fault]
    plant(monkeypatch)
    assert reasons(cases_of(name))
