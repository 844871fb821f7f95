"""RT-DETR against an independent implementation, that of transformers, with the same seeded weights."""

import numpy as np
import pytest

import rtdetr_golden as golden
import rtdetr_twin
import toy_rtdetr
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.weights.convert import rtdetr as library

rtdetr_twin.require_transformers()


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    deployment = toy_rtdetr.load_toy(tmp_path_factory.mktemp('transformers'), rtdetr_twin.ROW_MAJOR)
    return deployment, rtdetr_twin.twin(deployment)


@pytest.mark.parametrize('shape', [(2, 3, 192, 192), (1, 3, 128, 224)])
def test_logits_and_boxes_are_those_of_transformers(pair, shape):
    found = rtdetr_twin.differences(*pair, shape)
    print(shape, found)
    assert max(found.values()) <= 1e-4, found


def test_its_state_dict_is_converted_back(pair):
    deployment, theirs = pair
    source = library.Source(dict(theirs.state_dict()), 'transformers')
    found = library.convert(source, load_config(toy_rtdetr.CONFIG))
    for key, value in deployment.model.state_dict().items():
        np.testing.assert_array_equal(found.state_dict[key].numpy(), value.numpy(), err_msg=key)


@pytest.mark.matrix
@pytest.mark.parametrize('name', ['r18vd', 'r34vd', 'r50vd'])
def test_models_of_full_size_give_what_those_of_transformers_give(name, tmp_path):
    deployment = toy_rtdetr.load_toy(tmp_path, rtdetr_twin.ROW_MAJOR, golden.config_of(name))
    found = rtdetr_twin.differences(deployment, rtdetr_twin.twin(deployment), (1, 3, 480, 640))
    assert max(found.values()) <= 1e-4, found
