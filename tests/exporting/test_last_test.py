"""A sample runs again on other tensors of the head, by the whole test path, and leaves no trace."""

import numpy as np
import pytest
import torch
from torch import nn

from mmdeploy_ext.exporting.last_test import LastTest


class Head(nn.Module):
    def forward(self, values):
        return values * 2


class Tracker(nn.Module):
    """A detector with a memory in an attribute, a dict and a buffer, and a step behind its head."""

    def __init__(self):
        super().__init__()
        self.head, self.seen, self.last, self.features = Head(), torch.zeros(1), {}, 0
        self.register_buffer('frames', torch.zeros(1))

    def extract_feat(self, values):
        self.features += 1
        return values + 1

    def forward(self, values):
        self.frames += 1
        outputs = self.head(self.extract_feat(values)) + self.seen
        self.last['outputs'], self.seen = outputs, self.seen + values.sum()
        return outputs.clamp(max=50)


def memory(model):
    return [float(model.seen), float(model.frames), model.features, model.last['outputs'].tolist()]


def test_the_second_run_has_the_first_ones_memory_and_the_third_sample_does_not_know_of_it():
    model, plain = Tracker(), Tracker()
    test = LastTest(model)
    for value in (1.0, 2.0):
        plain(torch.tensor([value]))
        test.run(values=torch.tensor([value]))
        before = memory(model)
        again = test.again({'head.forward': torch.tensor([20.0])})
        assert memory(model) == before == memory(plain)
        assert float(again) == 20.0 + (value - 1)  # what it had seen before this sample
        assert float(test.again({'head.forward': torch.tensor([90.0])})) == 50.0


class ModelOfResults(torch.nn.Module):
    def forward(self):
        boxes = dict(boxes_3d=torch.ones(2, 9), attrs_3d=torch.ones(2), lines=[np.ones(2)], count=3)
        return [dict(pts_bbox=boxes, depth=torch.ones(4, 4), none=[])]


@pytest.mark.parametrize(
    ('read', 'unread'),
    [
        (lambda found: found['pts_bbox']['boxes_3d'], {'pts_bbox.attrs_3d', 'pts_bbox.lines', 'depth'}),
        (lambda found: (dict(found['pts_bbox']), found.get('depth')), set()),
        (lambda found: {**found['pts_bbox']}, {'depth'}),
        (lambda found: [*found['pts_bbox'].items()], {'depth'}),
        (
            lambda found: found.get('pts_bbox', found).pop('lines'),
            {'pts_bbox.boxes_3d', 'pts_bbox.attrs_3d', 'depth'},
        ),
    ],
)
def test_arrays_of_the_results_that_nobody_reads_are_named(read, unread):
    test = LastTest(ModelOfResults())
    (found,) = test.run()
    read(found)
    assert test.unread() == unread
