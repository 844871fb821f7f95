"""Files come back as the graph that was written, and damaged ones are refused by name."""

import dataclasses
import functools
import os

import pytest

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.exporting.sparse import libspconv
from mmdeploy_ext.exporting.sparse.fold import fold, reorder
from mmdeploy_ext.exporting.sparse.precision import apply_precision
from mmdeploy_ext.runtime.sparse.ir import (
    differences,
)
from scn_nets import traced_small


@functools.cache
def graph():
    return fold(traced_small(), 'fp16')


@pytest.mark.parametrize('order', ['xyz', 'zyx'])
def test_what_is_written_comes_back(tmp_path, order):
    for number, written in enumerate((graph(), apply_precision(graph(), 'fp16'))):
        target = tmp_path / f'{number}.onnx'
        libspconv.write(reorder(written, order), target)
        assert differences(libspconv.read(target), reorder(written, order)) == []


# ---- what cannot be written


def test_an_unfolded_graph_is_refused_by_node(tmp_path):
    with pytest.raises(ExportError, match=r'conv0 \(conv_input.0\)'):
        libspconv.write(traced_small(), tmp_path / 'm.onnx')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('change', [dict(transposed=True), dict(groups=2)])
def test_a_convolution_that_the_engine_computes_as_another_is_refused_by_layer(change):
    first, *others = graph().nodes
    changed = dataclasses.replace(graph(), nodes=(dataclasses.replace(first, **change), *others))
    with pytest.raises(ExportError, match=r'conv0 \(conv_input.0\)'):
        libspconv.to_onnx(changed)
    inverse = dataclasses.replace(graph(), nodes=(dataclasses.replace(first, inverse=True), *others))
    assert libspconv.from_onnx(libspconv.to_onnx(inverse)).convolutions()[0].inverse
