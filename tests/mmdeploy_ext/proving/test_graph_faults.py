"""Faults that the inputs of a proof need not set off: level 1 refuses each of them, and names where it is."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from conditional_faults import (
    SIZES,
    WHERE,
    a_little_off,
    clipped,
    mean_of,
    not_a_number,
    only_where,
    with_logits,
)
from mmdeploy_ext.graph.io.constants import constant_value
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.fresh_export import compare_with_fresh_export
from proofs import check_files
from toy_atss import PICTURE


def number(old, new, part=''):
    """Return what changes a constant that is one number, of nodes whose name has a part."""

    def change(graph, family):
        places = [
            (node.attribute[0].t, constant_value(node))
            for node in graph.node
            if node.op_type == 'Constant' and part in node.name
        ]
        places += [(tensor, numpy_helper.to_array(tensor)) for tensor in graph.initializer]
        tensor, array = next(
            (tensor, array)
            for tensor, array in places
            if array.size == 1 and array.dtype.kind in 'fi' and np.allclose(array, old, rtol=1e-6, atol=0)
        )
        tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, new), tensor.name))

    return change


def attribute(operator, name, factor):
    def change(graph, family):
        node = next(node for node in graph.node if node.op_type == operator)
        entry = next(entry for entry in node.attribute if entry.name == name)
        entry.f *= factor

    return change


def a_weight(graph, family):
    tensor = next(tensor for tensor in graph.initializer if len(tensor.dims) == 4)
    array = numpy_helper.to_array(tensor) * np.float32(1.00002)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def sometimes(planter, image):
    return planter.Less(planter.Squeeze(planter.RandomUniform(shape=[1])), np.float32(0.02))


def default_of(name):
    def change(graph, family):
        tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array + np.ones_like(array), name))

    return change


def dark(family):
    return lambda planter, image: planter.Less(mean_of(planter, image), np.float32(-1.7))


EVERYWHERE = {
    **{name: only_where(condition, a_little_off) for name, condition in WHERE.items()},
    'NaN on dark pictures': only_where(dark('any'), not_a_number),
    'wrong in 2 % of runs': only_where(sometimes, a_little_off),
    'a weight times 1.00002': a_weight,
}
FAULTS = {
    **{(family, name): change for family in SIZES for name, change in EVERYWHERE.items()},
    ('atss', 'score threshold 0.0501'): number(0.05, 0.0501),
    ('atss', 'nms_pre 500 for 1000'): number(1000, 500),
    ('atss', 'boxes clipped at 600 px'): clipped(600),
    ('rtdetr', 'boxes clipped at 600 px'): clipped(600),
    ('atss', "P7's logits silenced"): with_logits(lambda p, x: p.Sub(x, np.float32(20)), 'cls_score_4'),
    ('atss', 'a Clip before decoding'): with_logits(
        lambda p, x: p.Clip(x, np.float32(-50), np.float32(50)), 'bbox_pred_0'
    ),
    ('atss', 'an optional input not fed'): default_of('img_shape'),
    ('solov2', 'an optional input not fed'): default_of('img_shape'),
    ('solov2', 'max_per_img 99'): number(100, 99),
    ('rtdetr', 'epsilons times 10'): attribute('LayerNormalization', 'epsilon', 10),
    ('solov2', 'epsilons times 10'): attribute('InstanceNormalization', 'epsilon', 10),
}


ONE_CODE = 'rtdetr', 'solov2'
"""Families whose graphs are compared by the code that compares ATSS's."""
OF_THE_OTHERS = 'rtdetr', 'a batch of 3 or more'
"""The fault of `EVERYWHERE` that the suite plants into another graph than that of ATSS."""
OF_CONDITIONS = 'H over 640'
"""The condition of `WHERE` under which the suite plants into ATSS: the same nodes are behind all of them."""


def in_matrix(family, fault):
    """Return whether a fault is in the matrix alone."""
    other_graph = family in ONE_CODE and fault in EVERYWHERE and (family, fault) != OF_THE_OTHERS
    return other_graph or (family == 'atss' and fault in WHERE and fault != OF_CONDITIONS)


@pytest.mark.suite(
    'atss-H over 640', 'atss-a Clip before decoding', 'atss-an optional input not fed',
    'atss-score threshold 0.0501', 'rtdetr-a batch of 3 or more',
)  # fmt: skip
@pytest.mark.parametrize(
    ('family', 'fault'),
    [
        pytest.param(family, fault, marks=[pytest.mark.matrix] if in_matrix(family, fault) else [])
        for family, fault in FAULTS
    ],
)
def test_a_fault_that_no_input_sets_off_is_refused_by_the_graph(known, tmp_path, family, fault):
    from mmdeploy_ext.proving import fresh_export
    from mmdeploy_ext.proving.levels.exported_file import open_file

    path, inputs = known(family)
    deployment, file = inputs[0].deployment, open_file(path)
    metadata = file.metadata
    FAULTS[family, fault](file.model.graph, family)
    options = deployment.family.exported_options(metadata.options)
    reference = fresh_export.of_images(deployment, options, metadata, read_image(PICTURE))
    graph = compare_with_fresh_export(file.model, metadata, reference)
    assert not graph.passed and graph.differences, fault
    assert 'from a fresh export: ' in graph.text


def test_a_random_operator_is_refused_whatever_decides_about_the_graph(known, tmp_path):
    path, inputs = known('atss')
    model = onnx.load(path)
    only_where(sometimes, a_little_off)(model.graph, 'atss')
    onnx.save(model, tmp_path / 'm.onnx')
    pictures = [('picture', read_image(PICTURE))]
    verdict = check_files(inputs[0].deployment, str(tmp_path / 'm.onnx'), pictures, edited=True)
    (failed,) = [check for check in verdict.structure if not check.passed]
    assert failed.name == 'no operator is random' and 'RandomUniform' in failed.detail
