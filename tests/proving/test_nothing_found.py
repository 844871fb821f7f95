"""A picture in which PyTorch finds nothing: every proof has one where there is one."""

import contextlib

import pytest
import torch

from marking import in_suite
from mmdeploy_ext.proving.pictures import (
    empty_reference,
    open_backend,
    picture_inputs,
    read_picture_file,
    run_case,
)
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from planting import replaced, result
from toy_atss import PICTURE, export_toy, load_demo, load_toy

SIZE = dict(height=128, width=160)


def from_nothing(found, *_):
    """Return a hundred boxes of score 0.9 where there are no results."""
    dets, labels, *count = found
    more = torch.cat([torch.arange(400.0).reshape(1, 100, 4), torch.full((1, 100, 1), 0.9)], 2)
    rows = 100 * (1 - (labels >= 0).sum(1).amax().clamp(max=1))
    more, classes = more[:, :rows], torch.zeros(1, 100, dtype=torch.int64)[:, :rows]
    return torch.cat([dets, more], 1), torch.cat([labels, classes], 1), *count


@pytest.mark.matrix
def test_boxes_where_pytorch_finds_nothing_are_refused(tmp_path):
    detector = load_toy()
    place = 'mmdeploy_ext.exporting.postprocess.bbox2d:DenseBoxPostprocess.forward'
    with replaced(place, result(from_nothing)), contextlib.ExitStack() as stack:
        file, options = read_picture_file(detector, export_toy(detector, tmp_path / 'm.onnx', **SIZE))
        backend = stack.enter_context(open_backend({}, file))
        inputs, _ = picture_inputs(detector, file, options, [('toy.jpg', read_image(PICTURE))])
        right, wrong = (run_case(reference, backend) for reference in (inputs[0], inputs[-1]))
    assert right.passed and not wrong.passed
    assert wrong.detections[0].extra == 100


@pytest.mark.parametrize('name', in_suite(['atss', 'mask_rcnn', 'solov2'], 'atss'))
def test_trained_models_find_nothing_in_a_plain_picture(name):
    detector = load_demo(name)
    reference, note = empty_reference(detector, detector.family.choose(opset=17, **SIZE))
    assert [len(one) for one in reference.results] == [0] and not note
