"""The whole model's results: floats by the rounding of its test path, integers that are a choice by ties."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.parts.proof import Whole
from mmdeploy_ext.proving.parts.results import paired
from mmdeploy_ext.proving.parts.samples import run_test_path
from mmdeploy_ext.proving.subject import Step
from mmdeploy_ext.spec.results import FLOAT32


class Volume(torch.nn.Module):
    """Scores of 3 classes with the rounding of 10000; it remembers the number of its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, values, return_loss=False):
        self.calls += 1
        scores = values + 1e4 + self.calls - 1e4
        return dict(scores=scores[None], classes=scores.argmax(1).numpy().astype(np.uint8))


class Map(torch.nn.Module):
    """The classes of 4x4 cells of a map."""

    def forward(self, values, return_loss=False):
        return dict(classes=values.argmax(2).numpy().astype(np.uint8))


FACTORY = SimpleNamespace(make=lambda: Volume().eval())


def judged(factory, samples, reference, candidate):
    """Return whether the loop passes the last sample's results, and the lines on ties."""
    model = factory.make()
    recorded = [(sample, run_test_path(model, sample)) for sample in samples[:-1]]
    subject = Whole(factory, [*recorded, (samples[-1], reference)], [], factory.make(), FLOAT32)
    subject.got = lambda sample, state: Step(
        facts=dict(result=candidate if sample.data == len(recorded) else recorded[sample.data][1])
    )
    return compare(subject)[0][-1].passed, subject.ties


def sides():
    values = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    values[:, 2] += 1  # the class, but for one voxel whose first two classes are equal to rounding
    values[7] = torch.tensor([0.9, 0.9 - 1e-4, 0.0])
    samples = [dict(values=values)] * 2
    runs = []
    for model in (FACTORY.make(), FACTORY.make()):
        runs.append([run_test_path(model, sample) for sample in samples][-1])
    return samples, *runs


@pytest.mark.parametrize(('key', 'change', 'passes'), [('scores', 8e-4, True), ('scores', 2e-2, False)])
def test_results_differ_by_the_rounding_of_the_test_path_and_not_by_a_percent(key, change, passes):
    samples, reference, candidate = sides()
    candidate[key][0, 3, 1] += change
    assert paired('results', reference, candidate).failures
    assert judged(FACTORY, samples, reference, candidate) == (passes, [])


@pytest.mark.parametrize(('voxel', 'passes'), [(7, True), (8, False)])
def test_a_class_is_another_one_if_its_score_is_the_same_to_rounding(voxel, passes):
    samples, reference, candidate = sides()
    candidate['classes'][voxel] = 1
    passed, ties = judged(FACTORY, samples, reference, candidate)
    assert (passed, len(ties)) == (passes, passes)


SHIFTED, EXCHANGED = (lambda classes: (classes + 1) % 3), (lambda classes: classes.T)


@pytest.mark.parametrize('change', [SHIFTED, EXCHANGED], ids=['shifted classes', 'exchanged axes'])
def test_classes_that_are_shifted_or_lie_along_another_axis_are_no_ties(change):
    values = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(0))
    factory = SimpleNamespace(make=lambda: Map().eval())
    samples = [dict(values=values)]
    reference = run_test_path(factory.make(), samples[0])
    candidate = dict(classes=np.ascontiguousarray(change(reference['classes'])))
    assert judged(factory, samples, reference, candidate) == (False, [])
