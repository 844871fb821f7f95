"""Files with the right weights that are wrong all the same: none is proven."""

import functools

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import toy_atss
import toy_rtdetr
import toy_solo
from marking import in_suite
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.ladder import prove
from proofs import prove_samples

PICTURE = read_image(toy_atss.PICTURE)
SMALL = PICTURE[::2, ::2]
"""Masks are of the picture's size: a quarter of the pixels that they are compared in."""


@pytest.fixture(scope='module')
def honest(tmp_path_factory):
    folder = tmp_path_factory.mktemp('honest')

    def atss(**options):
        deployment = toy_atss.load_toy()
        return deployment, toy_atss.export_toy(deployment, folder / 'atss.onnx', form='full', **options)

    def rtdetr(**options):
        deployment = toy_rtdetr.load_toy(folder)
        return deployment, toy_rtdetr.export_toy(deployment, folder / 'rtdetr.onnx', form='full', **options)

    def solo(**options):
        deployment, path = toy_solo.load_toy('solov2', folder), str(folder / f'solo{len(options)}.onnx')
        asked = toy_solo.options_for(form='full', dynamic=True, **options)
        export_files(deployment, asked, path, [toy_solo.prepared(deployment, 0)])
        return deployment, path

    makers = dict(atss=atss, rtdetr=rtdetr, solo=solo, solo_capped=lambda: solo(max_candidates=600))
    return functools.cache(lambda name: makers[name]())


def constant(graph, name, value):
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def behind(graph, output, *nodes):
    """Give an output another value: the nodes read `X` and make `Y`."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [f'right/{output}' if name == output else name for name in names]
    names = dict(X=f'right/{output}', Y=output)
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    graph.node.extend(nodes)


def first_for_all(name):
    """Every image of a batch gets the sizes of the first one."""

    def change(graph):
        for node in graph.node:
            node.input[:] = ['wrong/sizes' if given == name else given for given in node.input]
        zero = constant(graph, 'wrong/zero', np.zeros(1, np.int64))
        for node in (
            helper.make_node('Expand', ['wrong/first', 'wrong/shape'], ['wrong/sizes']),
            helper.make_node('Shape', [name], ['wrong/shape']),
            helper.make_node('Gather', [name, zero], ['wrong/first'], axis=0),
        ):
            graph.node.insert(0, node)

    return change


def frozen(name, value):
    """An input still reaches the outputs, times zero; what counts is a constant."""

    def change(graph):
        for node in graph.node:
            node.input[:] = ['wrong/frozen' if given == name else given for given in node.input]
        numbers = dict(none=0, kept=value)
        zero, kept = (constant(graph, f'wrong/{key}', np.int64(one)) for key, one in numbers.items())
        graph.node.insert(0, helper.make_node('Add', ['wrong/nothing', kept], ['wrong/frozen']))
        graph.node.insert(0, helper.make_node('Mul', [name, zero], ['wrong/nothing']))

    return change


def reversed_rows(*outputs):
    """Results in ascending order of scores."""

    def change(graph):
        numbers = dict(start=[2**31], end=[-(2**31)], axis=[1], step=[-1])
        names = [constant(graph, f'wrong/{key}', np.int64(value)) for key, value in numbers.items()]
        for output in outputs:
            behind(graph, output, helper.make_node('Slice', ['X', *names], ['Y']))

    return change


def other_class_below(threshold, num_classes):
    """Results of low scores have another class."""

    def change(graph):
        names = [
            constant(graph, f'wrong/{key}', value)
            for key, value in dict(
                bar=np.float32(threshold), zero=np.float32(0), one=np.int64(1), classes=np.int64(num_classes)
            ).items()
        ]
        bar, zero, one, classes = names
        behind(
            graph,
            'labels',
            helper.make_node('Less', ['scores', bar], ['wrong/low']),
            helper.make_node('Greater', ['scores', zero], ['wrong/there']),
            helper.make_node('And', ['wrong/low', 'wrong/there'], ['wrong/which']),
            helper.make_node('Add', ['X', one], ['wrong/next']),
            helper.make_node('Mod', ['wrong/next', classes], ['wrong/class']),
            helper.make_node('Where', ['wrong/which', 'wrong/class', 'X'], ['Y']),
        )

    return change


def no_candidates(graph):
    """The count that tells whether something was left out is always 0."""
    behind(graph, 'candidates', helper.make_node('Sub', ['X', 'X'], ['Y']))


WRONG = {
    'ATSS, scale of the first image': ('atss', first_for_all('scale_factor'), 'batch 3'),
    'ATSS, reversed': ('atss', reversed_rows('dets', 'labels'), 'scores do not descend'),
    'RT-DETR, sizes of the first image': ('rtdetr', first_for_all('orig_target_sizes'), 'batch 3'),
    'RT-DETR, reversed': ('rtdetr', reversed_rows('labels', 'boxes', 'scores'), 'scores do not descend'),
    'SOLO, sizes of the first image': ('solo', first_for_all('img_shape'), 'batch 3'),
    'SOLO, one original size': ('solo', frozen('ori_shape', SMALL.shape[:2]), 'masks: got (180, 240) pixels'),
    'SOLO, classes of low scores': ('solo', other_class_below(0.1, 5), 'results below the score threshold'),
    'SOLO, no candidates': ('solo_capped', no_candidates, 'candidates: got [0]'),
}


ELSEWHERE = (
    'ATSS, scale of the first image',
    'RT-DETR, sizes of the first image',
    'RT-DETR, reversed',
    'SOLO, sizes of the first image',
    'SOLO, no candidates',
    'SOLO, classes of low scores',
    'SOLO, one original size',
)
"""Files of the matrix. In the suite are ATSS reversed (here) and with the sizes of the first image
(`test_ladder.py`), RT-DETR with height and width exchanged (`test_rtdetr_export.py`)."""


def pictures(deployment):
    return [('toy', SMALL if deployment.family.task == 'mask' else PICTURE)]


@pytest.mark.parametrize(
    ('name', 'change', 'reason'),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.matrix] if name in ELSEWHERE else [])
        for name, case in WRONG.items()
    ],
)
def test_a_wrong_file_is_not_proven_and_the_reason_is_said(honest, tmp_path, name, change, reason):
    deployment, path = honest(name)
    model = onnx.load(path)
    change(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / 'wrong.onnx')
    verdict, _ = prove(deployment, str(tmp_path / 'wrong.onnx'), pictures(deployment))
    assert not verdict.proven
    assert any(reason in said for said in verdict.failures), verdict.failures


@pytest.mark.parametrize('name', in_suite(['atss', 'solo_capped', 'rtdetr', 'solo'], 'atss'))
def test_the_files_that_were_changed_are_proven_as_they_are(honest, name):
    deployment, path = honest(name)
    verdict, _ = prove_samples(deployment, path, pictures(deployment))
    assert verdict.proven, verdict.failures
