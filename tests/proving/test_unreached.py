"""Limits that no input of a proof reached are named, with the most that any input had."""

import dataclasses

import numpy as np

from mmdeploy_ext.preprocess.points import VoxelRule, voxelise
from mmdeploy_ext.proving.open_points import count_voxels, counts_of_images, limits_of, unreached
from mmdeploy_ext.verdict.results import Case


def test_a_limit_is_named_if_something_was_counted_and_less_than_it():
    cases = [
        Case('a', '', False, counts=dict(max_per_img=97, max_candidates=40)),
        Case('b', '', False, counts=dict(max_per_img=3)),
    ]
    limits = dict(max_per_img=100, max_candidates=40, nms_pre=1000, score_thr=0.5, type='full')
    assert unreached(limits, cases, '--images') == [
        'max_per_img 100 (most found 97): reach it with --images, or lower it with --cfg-options in export '
        'and verify'
    ]
    assert unreached(dict(max_per_img=-1), cases, '--images') == unreached({}, cases, '--images') == []


def test_limits_of_proposals_are_those_of_rpn():
    facts = dict(max_per_img=100, proposals=dict(nms_pre=1000, max_per_img=300))
    cases = [Case('a', '', False, counts={'max_per_img': 100, 'rpn.nms_pre': 640, 'rpn.max_per_img': 300})]
    (line,) = unreached(limits_of(facts, dict(form='full')), cases, '--images')
    assert line.startswith('rpn.nms_pre 1000 (most found 640)')
    assert limits_of(dict(max_per_img=100), {}) == dict(max_per_img=100)


def test_the_fullest_picture_of_a_batch_counts():
    outputs = dict(candidates=np.array([7, 9]), proposal_candidates=np.array([4, 2]), labels=np.zeros(3))
    counts = counts_of_images([range(3), range(5)], outputs)
    assert counts == dict(max_candidates=9, max_proposals=4, max_per_img=5)


def test_voxels_are_counted_without_their_limit():
    points = np.random.default_rng(0).uniform(-2, 2, (200, 4)).astype(np.float32)
    rule = VoxelRule((-1.0, -2.0, -0.5, 1.0, 1.0, 1.0), (0.5, 0.25, 1.5), 5, 10**6, 'zyx', 4)
    count = len(voxelise(points, rule)[0])
    assert count_voxels(points, rule) == count > 10
    assert count_voxels(points, dataclasses.replace(rule, max_voxels=3)) == count
    assert count_voxels(points[:0], rule) == 0
