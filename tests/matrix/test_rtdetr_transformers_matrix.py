"""RT-DETR at full size against transformers with the same seeded weights, all four backbones."""

import pytest

import rtdetr_golden as golden
import rtdetr_twin
import toy_rtdetr

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize('name', ['r18vd', 'r34vd', 'r50vd', 'r101vd'])
def test_logits_and_boxes_are_those_of_transformers(name, tmp_path):
    rtdetr_twin.require_transformers()
    deployment = toy_rtdetr.load_toy(tmp_path, rtdetr_twin.ROW_MAJOR, golden.config_of(name))
    theirs = rtdetr_twin.twin(deployment)
    for shape in ((1, 3, 640, 640), (1, 3, 480, 640)):
        found = rtdetr_twin.differences(deployment, theirs, shape)
        print(name, shape, found)
        assert max(found.values()) <= 1e-4, found
