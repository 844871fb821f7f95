"""Faults of sparse backbones' files that random mutants showed: what the graph alone does not hold."""

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, numpy_helper

import toy_scn_family
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.backbone_files import export_file
from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.proving.levels.sparse_file import compare_graph, read_sparse_file


@pytest.fixture(scope='module')
def deployment(tmp_path_factory):
    model = toy_scn_family.write_model(tmp_path_factory.mktemp('second'), 'second')
    return deploy.load(*model, product=BACKBONE)


def exported(deployment, folder, target):
    """Return the path of a file, and its graph."""
    path = str(folder / 'backbone.xyz.onnx')
    export_file(deployment, deployment.family.choose(target=target, order='xyz'), path)
    return path, onnx.load(path)


def judged(deployment, path, model):
    onnx.save(model, path)
    return compare_graph(read_sparse_file(deployment, path, None))


def test_an_entry_that_is_there_twice_is_refused_in_both_dialects(deployment, tmp_path):
    for target in ('libspconv', 'portable'):
        path, model = exported(deployment, tmp_path, target)
        model.metadata_props.add(key='mm2onnx.voxels', value='{}')
        with pytest.raises(ModelFileError, match='voxels'):
            judged(deployment, path, model)


def test_weights_beside_a_portable_file_are_read_and_compared(deployment, tmp_path):
    path, model = exported(deployment, tmp_path, 'portable')
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == 'conv1.bias')
    right = numpy_helper.to_array(tensor)
    external_data_helper.set_external_data(tensor, 'bias.data', 0, right.nbytes)
    tensor.ClearField('raw_data')
    tensor.data_location = onnx.TensorProto.EXTERNAL
    (tmp_path / 'backbone.xyz.onnx').write_bytes(model.SerializeToString())
    for values, equal in ((right, True), (np.flip(right), False)):
        (tmp_path / 'bias.data').write_bytes(values.tobytes())
        assert compare_graph(read_sparse_file(deployment, path, None)).equal is equal
