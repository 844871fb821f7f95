"""RT-DETR at full size against transformers with the same seeded weights, all four backbones."""

import pytest

import rtdetr_golden as golden
import rtdetr_twin
import toy_rtdetr

pytestmark = pytest.mark.matrix


# R101 in float64: its float32 is 1.0e-4 from its own float64, so two float32 programs differ by 3.0e-4
@pytest.mark.parametrize(
    ('name', 'double', 'bar'),
    [('r18vd', False, 1e-4), ('r34vd', False, 1e-4), ('r50vd', False, 1e-4), ('r101vd', True, 1e-6)],
)
def test_logits_and_boxes_are_those_of_transformers(name, double, bar, tmp_path):
    rtdetr_twin.require_transformers()
    deployment = toy_rtdetr.load_toy(tmp_path, rtdetr_twin.ROW_MAJOR, golden.config_of(name))
    theirs = rtdetr_twin.twin(deployment)
    if double:
        deployment.model.double()
        theirs.double()
    for shape in ((1, 3, 640, 640), (1, 3, 480, 640)):
        found = rtdetr_twin.differences(deployment, theirs, shape)
        print(name, shape, found)
        assert max(found.values()) <= bar, found
