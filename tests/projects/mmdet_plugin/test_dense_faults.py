"""Faults of a file, and of the code that writes it, are not proven: of each kind of decoding."""

import functools

import onnx
import pytest
from dense_faulty import NAMES, OF_FILES, PICTURE, export, load, options_of

from marking import in_suite
from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
from mmdeploy_ext.proving import fresh_export
from mmdeploy_ext.proving.fresh_export import compare_with_fresh_export
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.proving.levels.exported_file import open_file
from mmdeploy_ext.proving.references import references
from planted_faults import FAULTS
from proofs import run_once

PICTURES = [('toy.jpg', PICTURE)]
CHEAP = {
    ('retinanet', "a coder's deviation"),
    ('yolox', 'objectness left out'),
    ('ssd', 'the background first'),
    ('centernet', 'the border left in'),
}
"""Of the faults of code one of each kind; `tests/fault_run.py` runs all."""
IN_SUITE = 'retinanet', 'ssd'


class Known:
    """A model, its honest file, and what a proof asks of it, each made once."""

    def __init__(self, name, folder):
        self.deployment = load(name, folder)
        self.path = export(self.deployment, folder / f'{name}.onnx')

    @functools.cached_property
    def fresh(self):
        metadata = open_file(self.path).metadata
        options = self.deployment.family.exported_options(metadata.options)
        return fresh_export.of_images(self.deployment, options, metadata, PICTURE)

    def graph(self, path):
        file = open_file(path)
        return compare_with_fresh_export(file.model, file.metadata, self.fresh)

    def told_by_the_first(self, path):
        """Return whether one of a few inputs shows a difference; the first that does ends it."""
        first = references(self.deployment, options_of(self.deployment), PICTURES)[:3]
        with OnnxRuntimeBackend(path) as backend:
            return not all(case.passed for case in run_once(first, backend))

    def told_by_all(self, path):
        verdict, *_ = prove(self.deployment, path, PICTURES)
        assert all(graph.passed for graph in verdict.graphs)
        return not verdict.proven


@pytest.fixture(scope='module')
def known(tmp_path_factory):
    return functools.cache(lambda name: Known(name, tmp_path_factory.mktemp(name)))


@pytest.mark.suite('retinanet')
@pytest.mark.parametrize('name', in_suite(NAMES, *IN_SUITE))
def test_an_honest_file_is_that_of_a_fresh_export(known, name):
    assert known(name).graph(known(name).path).passed


@pytest.mark.matrix
@pytest.mark.parametrize('name', NAMES)
def test_an_honest_file_is_proven(known, name):
    assert not known(name).told_by_all(known(name).path)


@pytest.mark.suite('retinanet-IoU 0.51', 'retinanet-class order', "retinanet-a level's stride")
@pytest.mark.parametrize(
    ('name', 'fault'), in_suite(OF_FILES, *((name, fault) for name, fault in OF_FILES if name in IN_SUITE))
)
def test_a_fault_of_a_file_is_refused_by_the_graph(known, tmp_path, name, fault):
    graph = known(name).graph(planted_file(known(name), tmp_path, name, fault))
    assert not graph.passed and graph.differences


def planted_file(one, folder, name, fault):
    model = onnx.load(one.path)
    OF_FILES[name, fault](model.graph)
    onnx.save(model, folder / 'm.onnx')
    return str(folder / 'm.onnx')


@pytest.mark.suite('the background first')
@pytest.mark.parametrize(
    'fault',
    [
        pytest.param(one, id=one.name, marks=[] if one.toy in IN_SUITE else [pytest.mark.matrix])
        for one in FAULTS
        if (one.toy, one.name) in CHEAP
    ],
)
def test_a_fault_of_our_code_is_refused_by_the_numbers(known, tmp_path, fault):
    one = known(fault.toy)
    with fault.apply():
        path = export(one.deployment, tmp_path / 'm.onnx')
        assert one.told_by_the_first(path)
    assert not one.graph(path).passed
