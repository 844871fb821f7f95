"""Files that are wrong only for some inputs: the inputs of a proof set each of them off, without level 1."""

import functools

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from mmdeploy_ext import deploy
from mmdeploy_ext.backends import build_backend
from mmdeploy_ext.family import ExportOptions
from mmdeploy_ext.preprocess import read_image
from mmdeploy_ext.verify.cases import run_case, run_cases
from mmdeploy_ext.verify.enough import AGAIN, whole_reasons
from mmdeploy_ext.verify.references import references
from toy_atss import PICTURE, REPO

SIZES = dict(atss=(256, 320), solov2=(256, 320), rtdetr=(256, 256))
IMAGE = dict(atss='input', solov2='input', rtdetr='images')
CHANGED = dict(atss='dets', solov2='scores', rtdetr='boxes')
"""The output that a conditional fault changes."""


@pytest.fixture(scope='module')
def known(tmp_path_factory):
    """Return family -> (right file, references of its inputs), both made once."""
    import projects.mmdet_plugin  # noqa: F401

    folder, images = tmp_path_factory.mktemp('right'), [('toy.jpg', read_image(PICTURE))]

    @functools.cache
    def make(name, dynamic=True):
        deployment = deploy.load(
            str(REPO / f'configs/demo/{name}_toy.py'), str(REPO / f'demo/checkpoints/{name}_toy.pth')
        )
        options = ExportOptions(height=SIZES[name][0], width=SIZES[name][1], dynamic=dynamic)
        traced = deploy.prepare_fixed(deployment.rule, images[0][1], options.height, options.width)
        path = str(folder / f'{name}_{dynamic}.onnx')
        deploy.export_to_file(deployment, options, [traced], path)
        return path, references(deployment, options, images)

    return make


def judge(path, inputs):
    """Return the cases of levels 2 and 3."""
    with build_backend('OnnxRuntimeBackend', path, threads=1, graph_optimization='basic') as backend:
        return list(run_cases(inputs, backend))


def first_failed(path, inputs):
    """Return the name of the first case that fails, '' where all pass."""
    with build_backend('OnnxRuntimeBackend', path, threads=1, graph_optimization='basic') as backend:
        return next((case.name for case in run_cases(inputs, backend) if not case.passed), '')


class Planter:
    """Adds nodes to a graph: `planter.Mul(a, b)` returns the name of the result."""

    def __init__(self, graph):
        self.graph, self.count, self.first = graph, 0, []

    def constant(self, value):
        self.count += 1
        name = f'planted/{self.count}'
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def __getattr__(self, operator):
        def add(*inputs, **attributes):
            self.count += 1
            name = f'planted/{self.count}'
            names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
            self.first.append(helper.make_node(operator, names, [name], **attributes))
            return name

        return add

    def side(self, image, axis):
        return self.Gather(self.Shape(image), np.int64(axis))

    def between(self, tensor, make):
        """Let all readers of a tensor, or the graph's output of that name, get `make(tensor)`."""
        made_by = [node for node in self.graph.node if tensor in node.output]
        is_output = any(value.name == tensor for value in self.graph.output)
        right = f'right/{tensor}' if is_output else tensor
        if is_output:
            for node in self.graph.node:
                for names in (node.input, node.output):
                    names[:] = [right if name == tensor else name for name in names]
        nodes = list(self.graph.node)
        self.first = []
        wrong = make(right)
        for node in nodes:
            node.input[:] = [wrong if name == right else name for name in node.input]
        if is_output:
            self.first.append(helper.make_node('Identity', [wrong], [tensor]))
        place = nodes.index(made_by[0]) + 1 if made_by else 0
        del self.graph.node[:]
        self.graph.node.extend([*nodes[:place], *self.first, *nodes[place:]])


def only_where(condition, wrong):
    """Change the results where a condition (a scalar bool) holds for the input."""

    def change(graph, family):
        planter = Planter(graph)
        planter.between(
            CHANGED[family],
            lambda right: planter.Where(condition(planter, IMAGE[family]), wrong(planter, right), right),
        )

    return change


def a_little_off(planter, right):
    return planter.Mul(right, np.float32(0.99))


def not_a_number(planter, right):
    return planter.Mul(right, np.float32(np.nan))


def mean_of(planter, image):
    return planter.ReduceMean(image, keepdims=0)


WHERE = {
    'a batch of 3 or more': lambda p, x: p.Greater(p.side(x, 0), np.int64(2)),
    'a batch of 2': lambda p, x: p.Equal(p.side(x, 0), np.int64(2)),
    'H over 640': lambda p, x: p.Greater(p.side(x, 2), np.int64(640)),
    'W over 640': lambda p, x: p.Greater(p.side(x, 3), np.int64(640)),
    'W > 2H': lambda p, x: p.Greater(p.side(x, 3), p.Mul(p.side(x, 2), np.int64(2))),
    'H > 2W': lambda p, x: p.Greater(p.side(x, 2), p.Mul(p.side(x, 3), np.int64(2))),
    'portraits': lambda p, x: p.Greater(p.side(x, 2), p.side(x, 3)),
    'H % 64': lambda p, x: p.Greater(p.Mod(p.side(x, 2), np.int64(64)), np.int64(0)),
    'W % 64': lambda p, x: p.Greater(p.Mod(p.side(x, 3), np.int64(64)), np.int64(0)),
    'H % 128 = 32': lambda p, x: p.Equal(p.Mod(p.side(x, 2), np.int64(128)), np.int64(32)),
}
FINE = {
    'H % 32': lambda p, x: p.Greater(p.Mod(p.side(x, 2), np.int64(32)), np.int64(0)),
    'W % 32': lambda p, x: p.Greater(p.Mod(p.side(x, 3), np.int64(32)), np.int64(0)),
}
SOME = 'a batch of 3 or more', 'W over 640', 'portraits', 'H % 64'
"""Of masks fewer: to compare wrong ones takes its time."""
DARK = dict(atss=-1.0, solov2=-1.0, rtdetr=0.2)
"""Means of the normalised input below which a picture counts as dark."""
BRIGHT = dict(atss=1.5, solov2=1.5, rtdetr=0.8)


def planted(path, folder, change, family):
    model = onnx.load(path)
    change(model.graph, family)
    onnx.checker.check_model(model)
    target = str(folder / 'wrong.onnx')
    onnx.save(model, target)
    return target


@pytest.mark.parametrize('dynamic', [True, False], ids=['dynamic', 'fixed'])
@pytest.mark.parametrize('family', SIZES)
def test_the_right_files_pass_with_far_more_than_the_least_matched(known, family, dynamic):
    path, inputs = known(family, dynamic)
    cases = judge(path, inputs)
    assert all(case.passed for case in cases) and not whole_reasons(cases)
    assert len(cases) == len(inputs) >= (8 if dynamic else 5)
    matched = [sum(row.matched for row in case.detections) for case in cases]
    assert min(matched) >= 10, dict(zip([case.name for case in cases], matched, strict=True))


@pytest.mark.parametrize(
    ('family', 'condition'),
    [
        *(('atss', condition) for condition in (*WHERE, *FINE)),
        *(('rtdetr', condition) for condition in WHERE),
        *(('solov2', condition) for condition in SOME),
    ],
)
def test_a_file_that_is_wrong_for_some_shapes_only_is_found(known, tmp_path, family, condition):
    change = only_where({**WHERE, **FINE}[condition], a_little_off)
    path, inputs = known(family)
    assert first_failed(planted(path, tmp_path, change, family), inputs) not in ('', 'traced input')


@pytest.mark.parametrize('dynamic', [True, False], ids=['dynamic', 'fixed'])
@pytest.mark.parametrize('family', SIZES)
def test_nan_on_dark_pictures_is_found(known, tmp_path, family, dynamic):
    change = only_where(lambda p, x: p.Less(mean_of(p, x), np.float32(DARK[family])), not_a_number)
    path, inputs = known(family, dynamic)
    cases = judge(planted(path, tmp_path, change, family), inputs)
    assert [case.name.split(',')[0] for case in cases if not case.passed] == ['dark']


@pytest.mark.parametrize('dynamic', [True, False], ids=['dynamic', 'fixed'])
@pytest.mark.parametrize('family', SIZES)
def test_wrong_results_on_bright_pictures_are_found(known, tmp_path, family, dynamic):
    change = only_where(lambda p, x: p.Greater(mean_of(p, x), np.float32(BRIGHT[family])), a_little_off)
    path, inputs = known(family, dynamic)
    cases = judge(planted(path, tmp_path, change, family), inputs)
    assert [case.name.split(',')[0] for case in cases if not case.passed] == ['bright']


@pytest.mark.parametrize('dynamic', [True, False], ids=['dynamic', 'fixed'])
@pytest.mark.parametrize(
    ('family', 'name', 'default'),
    [
        ('atss', 'img_shape', np.float32(0)),
        ('atss', 'scale_factor', np.float32(1)),
        ('solov2', 'img_shape', np.float32(0)),
        ('solov2', 'ori_shape', np.int64(0)),
    ],
)
def test_a_file_that_is_wrong_when_an_optional_input_is_not_fed_is_found(
    known, tmp_path, family, name, default, dynamic
):
    def condition(planter, image):
        different = planter.Not(planter.Equal(name, default))
        count = planter.ReduceSum(planter.Cast(different, to=1), keepdims=0)
        return planter.Equal(count, np.float32(0))

    path, inputs = known(family, dynamic)
    cases = judge(planted(path, tmp_path, only_where(condition, a_little_off), family), inputs)
    failed = [case.name for case in cases if not case.passed]
    assert any(f'without {name}' in case or f'and {name}' in case for case in failed), failed


def clipped(pixels):
    def change(graph, family):
        planter = Planter(graph)
        planter.between(CHANGED[family], lambda right: planter.Min(right, np.float32(pixels)))

    return change


def with_logits(change_logits, tensor):
    def change(graph, family):
        planter = Planter(graph)
        planter.between(tensor, lambda right: change_logits(planter, right))

    return change


@pytest.mark.parametrize(
    ('family', 'change'),
    {
        'ATSS, boxes clipped at 600 px': ('atss', clipped(600)),
        'RT-DETR, boxes clipped at 600 px': ('rtdetr', clipped(600)),
        "ATSS, P6's logits silenced": (
            'atss',
            with_logits(lambda p, x: p.Sub(x, np.float32(20)), 'cls_score_3'),
        ),
    }.values(),
)
def test_a_file_that_is_wrong_in_one_place_only_is_found(known, tmp_path, family, change):
    path, inputs = known(family)
    assert first_failed(planted(path, tmp_path, change, family), inputs)


class Alternating:
    """An engine whose every second run is wrong."""

    def __init__(self, backend):
        self.backend, self.runs = backend, 0
        self.metadata, self.computes_in = backend.metadata, ''

    def infer(self, feeds):
        self.runs += 1
        outputs = self.backend.infer(feeds)
        outputs['dets'] = outputs['dets'] * np.float32(1 if self.runs % 2 else 0.9)
        return outputs


def test_every_input_runs_twice_and_a_second_run_that_is_wrong_is_a_failed_case_of_its_own(
    known, monkeypatch
):
    from mmdeploy_ext.verify import cases as module

    path, inputs = known('atss')
    monkeypatch.setitem(module.ENGINE_TITLES, 'Alternating', 'alternating')
    with build_backend('OnnxRuntimeBackend', path) as backend:
        first, second = run_case(inputs[0], Alternating(backend))[0]
    assert first.passed and not second.passed
    assert second.name == first.name + AGAIN


def test_references_are_computed_once_however_many_files_are_judged(known, monkeypatch):
    path, inputs = known('atss')
    judge(path, inputs)
    monkeypatch.setattr(type(inputs[0].deployment.family), 'reference_detections', None)
    assert all(case.passed for case in judge(path, inputs))
