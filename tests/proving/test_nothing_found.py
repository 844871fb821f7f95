"""A picture in which PyTorch finds nothing: every proof has one where there is one."""

import contextlib

import pytest
import torch

from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.pictures import open_backend, picture_inputs, read_picture_file, run_case
from mmdeploy_ext.proving.references import empty_reference
from planting import replaced, result
from proofs import check_files
from toy_atss import PICTURE, REPO, load_toy
from verdicts import graphs_of

PICTURES = [('toy.jpg', read_image(PICTURE))]


def options_of(deployment):
    return deployment.family.choose(opset=17, height=128, width=160)


def load(name):
    return deploy.load(
        *(str(REPO / path) for path in (f'configs/demo/{name}_toy.py', f'demo/checkpoints/{name}_toy.pth'))
    )


def from_nothing(found, *_):
    """Return a hundred boxes of score 0.9 where there are no results."""
    dets, labels, *count = found
    more = torch.cat([torch.arange(400.0).reshape(1, 100, 4), torch.full((1, 100, 1), 0.9)], 2)
    rows = 100 * (1 - (labels >= 0).sum(1).amax().clamp(max=1))
    more, classes = more[:, :rows], torch.zeros(1, 100, dtype=torch.int64)[:, :rows]
    return torch.cat([dets, more], 1), torch.cat([labels, classes], 1), *count


@pytest.mark.matrix
def test_boxes_where_pytorch_finds_nothing_are_refused(tmp_path):
    deployment, path = load_toy(), str(tmp_path / 'm.onnx')
    options = options_of(deployment)
    traced = deploy.prepare_fixed(deployment.rule, PICTURES[0][1], options.height, options.width)
    place = 'mmdeploy_ext.exporting.postprocess.bbox2d:DenseBoxPostprocess.forward'
    with replaced(place, result(from_nothing)), contextlib.ExitStack() as stack:
        export_files(deployment, options, path, [traced])
        assert graphs_of(check_files(deployment, path, PICTURES))[0].equal
        file, options = read_picture_file(deployment, path)
        backend = stack.enter_context(open_backend({}, file))
        inputs, _ = picture_inputs(deployment, file, options, PICTURES)
        right, wrong = (run_case(reference, backend)[0] for reference in (inputs[0], inputs[-1]))
    assert right.passed and not wrong.passed
    assert wrong.name == 'plain picture, nothing found' and wrong.detections[0].reason == '100 extra'


@pytest.mark.suite('atss')
@pytest.mark.parametrize(
    'make', [load_toy, lambda: load('mask_rcnn'), lambda: load('solov2')], ids=['atss', 'mask_rcnn', 'solov2']
)
def test_trained_models_find_nothing_in_a_plain_picture(make):
    deployment = make()
    reference, note = empty_reference(deployment, options_of(deployment))
    assert [len(one) for one in reference.results] == [0] and not note
