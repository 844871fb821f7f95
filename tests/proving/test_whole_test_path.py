"""A step of the user's own test path that a file lacks is found, for each kind of sample and engine."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from unittest import mock

import numpy as np
import pytest

import toy_centerpoint
from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.engines import build_backend, registry
from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
from mmdeploy_ext.proving.pictures import open_backend, read_picture_file, references, run_case
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec.matching import total_reasons
from proofs import prove_outputs
from toy_atss import PICTURE, load_demo, toy_file
from verdicts import cases_of

PICTURES = [('toy.jpg', read_image(PICTURE)[::2, ::2])]


class OtherEngine(OnnxRuntimeBackend):
    """An engine that shows no inner tensors; `lost` of its last boxes get a score of 0."""

    lost = 0

    def infer(self, feeds):
        outputs = dict(super().infer(feeds))
        if self.lost:
            outputs['dets'] = np.array(outputs['dets'])
            found = np.flatnonzero(outputs['dets'][0, :, 4])
            outputs['dets'][0, found[-self.lost :], 4] = 0
        return outputs


def without_last(method):
    """Return a detector's method that drops the last box of each image or sweep that has some."""

    def shortened(*args, **kwargs):
        results = method(*args, **kwargs)
        for result in results:
            if isinstance(result, dict):
                result.update({name: values[:-1] for name, values in result.items()})
            else:
                label = max(range(len(result)), key=lambda label: len(result[label]))
                result[label] = result[label][:-1]
        return results

    return shortened


def test_boxes_of_given_tensors_are_those_of_the_users_simple_test_pts():
    detector, *_ = toy_centerpoint.exported()
    reference = detector.family.reference(detector.model)
    result = reference.step(Sweep(toy_centerpoint.sweep(0, 900)))
    same = reference.boxes_of(result.outputs)
    np.testing.assert_array_equal(same.boxes, result.detections.boxes)
    shortened = without_last(detector.model.simple_test_pts)
    with replaced_entry(vars(detector.model), 'simple_test_pts', shortened):
        assert len(reference.boxes_of(result.outputs)) == len(same) - 1


@pytest.mark.matrix
def test_a_box_that_the_users_simple_test_pts_drops_is_in_no_proven_file():
    detector, folder, *_ = toy_centerpoint.exported()
    model, paths = detector.model, toy_centerpoint.paths_of(folder)
    samples = toy_centerpoint.sweeps(3, 5)
    assert prove_outputs(detector, paths, samples).title == 'PROVEN'
    with replaced_entry(vars(model), 'simple_test_pts', without_last(model.simple_test_pts)):
        verdict = prove_outputs(detector, paths, samples)
    assert verdict.title == 'NOT PROVEN'
    rows = [row for case in cases_of(verdict) for row in case.substituted]
    assert rows and all(row.extra == 1 for row in rows)


@functools.cache
def first_input():
    detector = load_demo('atss')
    _, options = read_picture_file(detector, toy_file())
    return detector, references(detector, options, PICTURES)[0]


def case_of_other_engine(lost=0):
    """Return the case of the ATSS toy on an engine beside ONNX Runtime."""
    detector, reference = first_input()
    reference.__dict__.pop('results', None)
    file, _ = read_picture_file(detector, toy_file())
    row = dataclasses.replace(registry.BACKENDS['OnnxRuntimeBackend'], module=__name__)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(registry.BACKENDS, OtherEngine=row))
        stack.enter_context(mock.patch.object(OtherEngine, 'lost', lost))
        backend = stack.enter_context(build_backend('OtherEngine', toy_file()))
        return run_case(reference, backend, stack.enter_context(open_backend({}, file)))


@pytest.mark.matrix
def test_another_engine_is_not_proven_without_a_step_of_the_users_or_with_other_results_than_onnx_runtime():
    detector, _ = first_input()
    shortened = without_last(detector.model.simple_test)
    with replaced_entry(vars(detector.model), 'simple_test', shortened):
        case = case_of_other_engine()
    assert not case.chained and [row.extra for row in case.substituted] == [1]
    lost = case_of_other_engine(lost=1)
    assert not lost.chained and [row.passed for row in lost.substituted] == [True]
    assert [row.passed for row in lost.engines] == [False]


def test_another_engine_runs_beside_onnx_runtime_whose_tensors_give_results_that_count():
    case = case_of_other_engine()
    assert case.passed and case.chained and case.substituted and case.engines
    assert all(row.matched for row in (*case.substituted, *case.engines))
    few = dataclasses.replace(case.detections[0], matched=2, reference=2)
    cases = [dataclasses.replace(case, detections=(few,), substituted=())] * 3
    assert 'only 6 results' in total_reasons(cases)[0]
    cases = [dataclasses.replace(case, detections=(few,))] * 3
    assert total_reasons(cases) == []
