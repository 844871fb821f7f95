"""ONNX files, in and out: damage is named, what is written is whole."""

import os
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx import helper

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.base.files import external_locations
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.run import random_feeds, run
from toy_graphs import conv_net, model_of, same


def large_net():
    """A net with a weight that is large enough to go into a data file."""
    weight = onnx.numpy_helper.from_array(
        np.random.default_rng(0).standard_normal((64, 64)).astype('f4'), 'w'
    )
    return model_of(
        [helper.make_node('MatMul', ['x', 'w'], ['z'], name='m')],
        [('x', [2, 64])],
        [('z', [2, 64])],
        [weight],
    )


def save_external(folder):
    onnx.save_model(
        large_net(), folder / 'x.onnx', save_as_external_data=True, location='x.weights', size_threshold=0
    )
    return folder / 'x.onnx'


def test_a_good_file_is_read_with_its_external_data(tmp_path):
    model = files.load(save_external(tmp_path))
    feeds = random_feeds(model)
    same(run(model, feeds), run(large_net(), feeds))


@pytest.mark.parametrize('location', ['../x.weights', '/dev/zero', 'link', ''])
def test_external_data_elsewhere_are_refused_by_their_tensor(tmp_path, location):
    folder = tmp_path / 'folder'
    folder.mkdir()
    path = save_external(folder)
    (folder / 'x.weights').rename(tmp_path / 'x.weights')
    (folder / 'link').symlink_to(tmp_path / 'x.weights')
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == 'location').value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match='external data'):
        files.load(path)
    assert external_locations(path) == ({'link'} if location == 'link' else set())


def test_missing_and_short_external_data_name_the_file(tmp_path):
    path = save_external(tmp_path)
    os.truncate(tmp_path / 'x.weights', 100)
    with pytest.raises(ModelFileError, match=r"'w'.*x\.weights"):
        files.load(path)
    (tmp_path / 'x.weights').unlink()
    with pytest.raises(ModelFileError, match=r"'w'.*x\.weights"):
        files.load(path)
    assert files.read(path).graph.node


def test_what_is_saved_is_what_is_loaded(tmp_path):
    path = tmp_path / 'y.onnx'
    assert files.save(conv_net(), path) == [path]
    assert files.load(path) == conv_net()
    assert [entry.name for entry in path.parent.iterdir()] == ['y.onnx']


def save_with_limit(model, path, limit):
    """Save a model as if one message could hold `limit` bytes."""
    with mock.patch.object(files, 'PROTOBUF_LIMIT', limit):
        return files.save(model, path)


def test_a_model_over_the_limit_gets_a_data_file(tmp_path):
    path, model = tmp_path / 'big.onnx', large_net()
    before = model.SerializeToString()
    written = save_with_limit(model, path, 10_000)
    assert written == [path, tmp_path / 'big.onnx.data'] and sorted(tmp_path.iterdir()) == written
    assert path.stat().st_size < 1000 and written[1].stat().st_size == 64 * 64 * 4
    assert model.SerializeToString() == before
    onnx.checker.check_model(path, full_check=True)
    feeds = random_feeds(model)
    same(run(files.load(path), feeds), run(model, feeds))
    written = save_with_limit(files.load(path), path, 10_000)  # again, over itself
    assert sorted(tmp_path.iterdir()) == sorted(written)
    same(run(files.load(path), feeds), run(model, feeds))
