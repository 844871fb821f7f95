"""Faults planted in files of two-stage detectors: level 1 refuses each, and so do the numbers alone."""

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mmdeploy_ext.deploy import deployment as deploy
from mmdeploy_ext.deploy.files import export_files
from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
from mmdeploy_ext.inputs.pictures import read_image
from mmdeploy_ext.proof.references import references
from projects.toydata.seeded import write_seeded
from proofs import check_files, run_once
from toy_atss import REPO

PICTURE = read_image(Path(REPO) / 'demo/toy.jpg')
SIZE = (192, 256)
CONFIG = f'{REPO}/configs/demo/mask_rcnn_toy.py'


class Known:
    """A model with seeded weights and its honest file of each form."""

    def __init__(self, folder):
        import projects.mmdet_plugin  # noqa: F401

        self.folder = folder
        write_seeded(CONFIG, folder / 'm.pth')
        self.deployment = deploy.load(CONFIG, str(folder / 'm.pth'))

    def options(self, form):
        return self.deployment.family.choose(form=form, opset=17, height=SIZE[0], width=SIZE[1])

    @functools.cache  # noqa: B019
    def path(self, form):
        picture = deploy.prepare_fixed(self.deployment.rule, PICTURE, *SIZE)
        path = self.folder / f'{form}.onnx'
        export_files(self.deployment, self.options(form), str(path), [picture])
        return str(path)

    @functools.cache  # noqa: B019
    def inputs(self, form):
        return references(self.deployment, self.options(form), [('toy.jpg', PICTURE)])[1:2]

    def cases(self, form, path):
        with OnnxRuntimeBackend(path) as backend:
            return list(run_once(self.inputs(form), backend))


@pytest.fixture(scope='module')
def known(tmp_path_factory):
    return Known(tmp_path_factory.mktemp('two_stage'))


def pools(graph):
    """Return the attributes of the RoiAlign nodes of boxes."""
    nodes = [node for node in graph.node if node.op_type == 'RoiAlign']
    return [{one.name: one for one in node.attribute} for node in nodes]


def sampling_ratio(graph):
    for pool in pools(graph):
        pool['sampling_ratio'].i = 2


def not_aligned(graph):
    for pool in pools(graph):
        pool['coordinate_transformation_mode'].s = b'output_half_pixel'


def scale_of_a_level(graph):
    for pool in pools(graph):
        pool['spatial_scale'].f *= 1.0 if pool['spatial_scale'].f != 0.125 else 8 / 7


def maps_of_other_levels(graph):
    nodes = [node for node in graph.node if node.op_type == 'RoiAlign']
    scales = {node.input[0]: {one.name: one for one in node.attribute}['spatial_scale'].f for node in nodes}
    first, second, *_ = sorted(scales, key=scales.get)
    for node in nodes:
        node.input[0] = {first: second, second: first}.get(node.input[0], node.input[0])


FAULTS = (sampling_ratio, not_aligned, scale_of_a_level, maps_of_other_levels)


@pytest.mark.parametrize('form', ['full', 'regions', 'proposals'])
def test_an_honest_file_passes(known, form):
    assert check_files(known.deployment, known.path(form), [('toy.jpg', PICTURE)]).graphs[0].passed
    cases = known.cases(form, known.path(form))
    assert all(case.passed for case in cases) and all(case.detections for case in cases)
    assert all(bool(case.tensors) == (form != 'full') for case in cases)


@pytest.mark.parametrize('form', ['full', 'regions'])
@pytest.mark.parametrize('plant', FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_of_a_file_is_refused_by_the_graph_and_by_the_numbers(known, tmp_path, plant, form):
    model = onnx.load(known.path(form))
    plant(model.graph)
    path = str(tmp_path / 'm.onnx')
    onnx.save(model, path)
    assert not check_files(known.deployment, path, [('toy.jpg', PICTURE)]).graphs[0].passed
    (case,) = known.cases(form, path)
    assert not case.passed
    if form == 'regions':
        assert next(row.tensor for row in case.tensors if not row.passed) == 'region_features_0'


def test_proposals_of_a_file_with_another_limit_are_refused(known, tmp_path):
    """The suppression keeps fewer: what mmdet's own heads make of them is not what the model finds."""
    model = onnx.load(known.path('proposals'))
    (suppression,) = [node for node in model.graph.node if node.op_type == 'NonMaxSuppression']
    threshold = suppression.input[3]
    constants = [node.attribute[0].t for node in model.graph.node if threshold in node.output]
    constants += [tensor for tensor in model.graph.initializer if tensor.name == threshold]
    for tensor in constants:
        lower = numpy_helper.to_array(tensor) * 0 + np.float32(0.3)
        tensor.CopyFrom(numpy_helper.from_array(lower, tensor.name))
    path = str(tmp_path / 'm.onnx')
    onnx.save(model, path)
    assert not check_files(known.deployment, path, [('toy.jpg', PICTURE)]).graphs[0].passed
    (case,) = known.cases('proposals', path)
    assert all(row.passed for row in case.tensors) and not all(row.passed for row in case.detections)
