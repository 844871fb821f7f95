"""The plan of a precision: planted faults are found with their module and reason; what is refused."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.base.errors import DataError, ExportError, ModelFileError, UsageError
from mmdeploy_ext.bench.precision import results_kept
from mmdeploy_ext.bench.precision.damage import Damage
from mmdeploy_ext.bench.precision.plan import Planner, Search, check_single, plan_text
from mmdeploy_ext.bench.precision.results_kept import divided, kept_of
from mmdeploy_ext.exporting.int8.dense import DenseGraph, DenseQuantiser
from mmdeploy_ext.exporting.precision_plan import KeptResults
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.types import infer
from mmdeploy_ext.graphs.passes.round_half import round_half
from mmdeploy_ext.graphs.run import run
from mmdeploy_ext.proving.explain import matched
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.tasks import match_bars
from mmdeploy_ext.spec.results import HALF

ROWS, COLUMNS = 8, 4
X = np.random.default_rng(0).uniform(0.2, 1.0, (ROWS, COLUMNS)).astype(np.float32)
CELLS = 70_000


def network(*steps, **constants):
    """A product, the module `head.fault` of `steps` (operator, constants ..., attributes), and a product."""
    constants = dict(w=np.eye(COLUMNS), v=np.eye(COLUMNS), **constants)
    nodes = [helper.make_node('MatMul', ['x', 'w'], ['f'], '/backbone/fc/MatMul')]
    for place, (operator, *names, attributes) in enumerate(steps):
        names = [name.replace('@', nodes[-1].output[0]) for name in names]
        name = f'/head/fault/{operator}_{place}'
        nodes.append(helper.make_node(operator, names, [f's{place}'], name, **attributes))
    nodes.append(helper.make_node('MatMul', [nodes[-1].output[0], 'v'], ['y'], '/head/out/MatMul'))
    arrays = {
        name: np.asarray(array, np.float32 if np.asarray(array).dtype.kind == 'f' else np.int64)
        for name, array in constants.items()
    }
    graph = helper.make_graph(
        nodes,
        'toy',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, [ROWS, COLUMNS])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, [ROWS, COLUMNS])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)


def test_no_input_is_in_the_search_and_in_its_result(monkeypatch):
    def entry(number):
        return SimpleNamespace(images=[SimpleNamespace(tensor=np.full((2, 2), number))], number=number)

    def inputs(detector, file, options, pictures):
        """The pictures, a black one as in every proof, twice, and a batch of both."""
        own = [entry(picture[0, 0]) for _, picture in pictures]
        batch = SimpleNamespace(images=[*own[0].images, *entry(0).images], number='batch')
        return [*own, entry(0), entry(0), batch], []

    class Reference:
        def __init__(self, detector, given):
            self.number, self.results, self.run = given.number, [], list

    file = SimpleNamespace(metadata=None)
    monkeypatch.setattr(results_kept, 'read_picture_file', lambda detector, path: (file, None))
    monkeypatch.setattr(results_kept, 'picture_inputs', inputs)
    monkeypatch.setattr(results_kept, 'InputReference', Reference)
    monkeypatch.setattr(results_kept, 'input_of', lambda given: given)
    pictures = [(str(number), np.full((2, 2), number + 1)) for number in range(4)]
    parts = results_kept.rows_of_pictures(None, ['f'], pictures, {}, ())
    search, result = ([one.number for one, *_ in part.args[2]] for part in parts)
    assert search and result and 0 in search + result and not {*search} & {*result}
    assert len({*search}) == len(search) and len({*result}) == len(result)


def planner_of(model, keep=(), **quantiser):
    """A planner whose results are the rows of `y` within 0.02 of float32."""
    wanted = run(model, dict(x=X))['y']

    def kept(models):
        found = run(round_half(models['m']), dict(x=X))['y']
        near = np.abs(found - wanted).max(axis=1) <= 0.02
        return KeptResults(int(near.sum()), ROWS)

    return Planner(dict(m=model), kept, dict(m=[dict(x=X)]), keep, **quantiser), kept(dict(m=model))


def steps_of(*texts, **constants):
    """Steps of 'Operator operand ...', with attributes as a last entry."""
    return [
        (*text.split(), {}) if isinstance(text, str) else (*text[0].split(), text[1]) for text in texts
    ], constants


FAULTS = {
    'a scale of 1e5 before a norm': (
        steps_of(
            'Mul @ scale', ('LayerNormalization @ gain', dict(axis=-1)), scale=1e5, gain=np.ones(COLUMNS)
        ),
        'overflow: 1e+05',
    ),
    'an epsilon of 1e-7': (
        steps_of(
            *('Mul @ small', 'Mul @ @', 'Add @ epsilon', 'Sqrt @', 'Mul @ large'),
            **dict(small=3e-4, epsilon=1e-7, large=1e3),
        ),
        'values of at most',
    ),
    'squared coordinates': (
        steps_of('Mul @ stride', 'Mul @ @', 'Sqrt @', 'Div @ stride', stride=1000.0),
        'overflow',
    ),
    'a sum over 70,000 cells': (
        steps_of(
            *('Mul @ three', 'Unsqueeze @ last', 'Expand @ cells'),
            *(('ReduceSum @ last', dict(keepdims=0)), 'Div @ count'),
            **dict(last=[2], cells=[ROWS, COLUMNS, CELLS], count=3.0 * CELLS, three=3.0),
        ),
        f'a sum over {CELLS:,} values',
    ),
    'a logit of 1e4': (steps_of('Add @ shift', 'Sub @ shift', shift=1e4), 'have steps of 8'),
    'coordinates above 2048': (steps_of('Add @ shift', 'Sub @ shift', shift=3000.0), 'have steps of 2'),
    'an exponential of 12': (
        steps_of('Mul @ twelve', 'Exp @', 'Log @', 'Div @ twelve', twelve=12.0),
        'overflow',
    ),
    'a reciprocal of 1e-6': (steps_of('Mul @ tiny', 'Reciprocal @', 'Mul @ tiny', tiny=1e-6), 'overflow'),
    'classes kept apart by offsets': (
        steps_of('Add @ apart', 'Sub @ apart', apart=np.arange(ROWS)[:, None] * 700.0),
        'have steps of',
    ),
    'a running sum': (
        steps_of(
            *('Mul @ many', 'CumSum @ first', 'CumSum @ second', 'Div @ many'),
            **dict(many=9000.0, first=0, second=1),
        ),
        'overflow',
    ),
}


@pytest.mark.parametrize('name', FAULTS)
def test_a_planted_fault_is_found_in_its_module_with_its_reason(name):
    (steps, constants), reason = FAULTS[name]
    planner, before = planner_of(network(*steps, **constants))
    plan = planner.plan(['fp16'], 0.999, before)
    assert plan.lowest.share < 0.999 <= plan.kept.share
    assert [row.unit for row in plan.rows if row.unit != 'head.out'] == ['head.fault']
    assert any(reason in text for text in plan.rows[0].reasons), plan.rows[0].reasons
    assert plan.products['fp16'] >= 0.5, 'the product before it is half'


def test_what_holds_as_a_whole_is_not_searched():
    planner, before = planner_of(network(('Relu', '@', {})))
    plan = planner.plan(['fp16'], 0.999, before)
    assert (plan.rows, plan.trials, plan.products) == ([], 1, dict(fp16=1.0))
    planner, before = planner_of(network(('Relu', '@', {})), keep=['head.fault'])
    assert planner.plan(['fp16'], 0.999, before).patterns == ['head.fault']


def test_units_without_multiplications_are_tried_first():
    """Rounding of a coordinate is small, and the cell that it chooses another one."""
    operators = ['MatMul', 'Relu'] * 20
    names = ['x', *(f't{place}' for place in range(len(operators)))]
    nodes = [
        helper.make_node(
            operator, [source, 'w'][: 1 + (operator == 'MatMul')], [name], f'/head/{name}/{operator}'
        )
        for operator, source, name in zip(operators, names, names[1:], strict=False)
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, COLUMNS])]
        for name in (names[0], names[-1])
    ]
    weight = numpy_helper.from_array(np.eye(COLUMNS, dtype=np.float32), 'w')
    opset = helper.make_opsetid('', 17)
    model = helper.make_model(
        helper.make_graph(nodes, 'toy', *ends, [weight]), opset_imports=[opset], ir_version=8
    )

    def kept(models):
        kinds = types.infer(models['m'])
        relus = [node for node in models['m'].graph.node if node.op_type == 'Relu']
        return KeptResults(
            all(kinds[node.output[0]].tensor_type.elem_type == TensorProto.FLOAT for node in relus), 1
        )

    plan = Planner(dict(m=model), kept, dict(m=[dict(x=X)])).plan(['fp16'], 0.999, KeptResults(1, 1))
    assert (plan.products, len(plan.rows)) == (dict(fp16=1.0), 20)


def test_a_constant_beyond_float16_stays_in_any_plan():
    planner, before = planner_of(network(('Min', '@', 'limit', {}), limit=1e8))
    assert list(planner.plan(['fp16'], 0.999, before).required) == ['overflow: its constant limit has 1e+08']
    assert planner.plan(['bf16'], 0.9, before).required == {}


def test_int8_fp16_writes_layers_between_codes_and_the_rest_in_float16():
    model = network(('Relu', '@', {}))
    quantiser = DenseQuantiser(DenseGraph(model, 'm'), outputs=False)
    quantiser.calibrate([dict(x=X)])
    planner, before = planner_of(model, quantiser=quantiser, layers=['backbone/fc'])
    plan = planner.plan(['int8', 'fp16'], 0.999, before)
    assert (plan.layers, plan.products) == (['backbone/fc'], dict(int8=0.5, fp16=0.5))
    written = planner.written('fp16', plan.patterns, plan.layers)['m']
    onnx.checker.check_model(written, full_check=True)
    assert sum(node.op_type == 'DequantizeLinear' for node in written.graph.node) == 2
    elements = {name: value.tensor_type.elem_type for name, value in infer(written).items()}
    outputs = {node.name: elements[node.output[0]] for node in written.graph.node}
    assert outputs['/backbone/fc/MatMul'] == TensorProto.FLOAT
    assert outputs['/head/fault/Relu_0'] == outputs['/head/out/MatMul'] == TensorProto.FLOAT16


def test_a_pattern_without_a_module_and_a_file_below_float32_are_refused():
    model = network(('Relu', '@', {}))
    with pytest.raises(UsageError, match='fualt'):
        planner_of(model, keep=['head.fualt'])
    planner, _ = planner_of(model)
    half = planner.written('fp16', [])
    onnx.checker.check_model(half['m'], full_check=True)
    with pytest.raises(ModelFileError, match='fp16'):
        check_single(half)


ALL = KeptResults(100, 100)


def needed_units(units, needed):
    search = Search(lambda higher: KeptResults(100 - 10 * len({*needed} - {*higher}), 100), 0.999)
    return search.higher(dict.fromkeys(units, 1.0)), search


def test_the_search_keeps_what_the_results_need_alone():
    units = [f'u{index}' for index in range(64)]
    found, search = needed_units(units, ['u3', 'u40'])
    assert {'u3', 'u40'} <= {*found} and len(found) <= 6 and len(search.trials) <= 12
    assert needed_units(units, [])[0] == []


def test_of_equal_errors_the_unit_with_fewer_multiplications_goes_back_first():
    damages = dict(large=Damage(own=0.1, products=0.5), small=Damage(own=0.1, products=0.01))
    weights = {unit: damage.weight for unit, damage in damages.items()}
    search = Search(lambda higher: KeptResults(98 + len(higher), 100), 0.99)
    assert search.higher(dict(sorted(weights.items(), key=lambda entry: -entry[1]))) == ['small']


def kept_of_lists(reference, candidate, cut=(), **limits):
    """What a plan counts of two lists of (x, score, label), with boxes of 10 x 10 pixels.

    `cut`: further results of the reference without limits.
    """
    sides = []
    for rows in (reference, candidate, [*reference, *cut]):
        x, scores, labels = np.array(rows, np.float32).reshape(-1, 3).T
        sides.append(Detections(np.stack([x, x * 0, x + 10, x * 0 + 10], 1), scores, labels.astype(np.int64)))
    subject = SimpleNamespace(task='bbox2d', module=torch.nn.Identity(), settings=limits, bars=HALF)
    bars = match_bars('bbox2d', HALF)
    return kept_of(matched(subject, ['list'], sides[:1], sides[1:2], lambda: sides[2:], **bars))


def results(count, score=0.9, label=0, start=0, step=4e-4):
    return [(20 * (start + place), score - step * (start + place), label) for place in range(count)]


@pytest.mark.parametrize(
    ('reference', 'candidate', 'kept'),
    [
        (results(100), results(100), KeptResults(100, 100)),
        (results(40), results(100), KeptResults(40, 100)),
        (results(100, 0.095), results(40, 0.095), KeptResults(40, 100)),
        (results(100), [*results(20), *results(80, 0.8999, label=1, start=20)], KeptResults(20, 180)),
        (
            results(100),
            [*results(20), *((x + 10, *rest) for x, *rest in results(80, 0.8999, start=20))],
            KeptResults(20, 180),
        ),
        (
            results(100),
            [*results(20), *((x + 3, *rest) for x, *rest in results(80, start=20))],
            KeptResults(20, 100),
        ),
        (results(100), [*results(20), *results(80, 0.8, start=20)], KeptResults(20, 100)),
        (results(100), [], KeptResults(0, 100)),
    ],
    ids=['equal', 'false', 'lost', 'labels', 'moved', 'outside', 'scores', 'none'],
)
def test_what_is_false_lost_or_outside_the_bars_counts(reference, candidate, kept):
    found = kept_of_lists(reference, candidate, score_thr=0.05, max_per_img=100)
    assert found == kept


def test_the_last_of_a_full_list_is_excused_at_a_tie_alone():
    reference, others = results(4, step=0.1), [(500, 0.6, 0)]
    tied = [*results(3, step=0.1), *others]
    found = kept_of_lists(reference, tied, others, max_per_img=4)
    assert (found.share, len(found.ties)) == (1.0, 1)
    assert kept_of_lists(reference, tied, max_per_img=4) == KeptResults(3, 5)
    higher = [(500, 0.61, 0)]
    assert kept_of_lists(reference, [*tied[:3], *higher], higher, max_per_img=4) == KeptResults(3, 5)


@pytest.mark.parametrize(
    ('scenes', 'parts'),
    [
        ('', ([0, 2, 4], [1, 3])),
        ('aaaaa', ([0, 1, 2], [3, 4])),
        ('aabbc', ([0, 1, 4], [2, 3])),
    ],
)
def test_samples_are_divided_and_those_of_a_scene_stay_together(scenes, parts):
    assert divided([*range(5)], scenes) == parts


def test_one_sample_cannot_be_divided():
    with pytest.raises(DataError, match='--images'):
        divided([0])


def test_the_share_of_a_plan_is_counted_on_other_samples_than_the_searchs():
    planner, before = planner_of(network(('Relu', '@', {})))
    planner.count = lambda models: KeptResults(3, 4, samples=2)
    plan = planner.plan(['fp16'], 0.999, before)
    assert (plan.to_json()['share'], plan.searched.share) == (0.75, 1.0)
    assert plan.kept.text in plan_text(plan) and plan.searched.text in plan_text(plan)


def test_a_share_that_float32_does_not_keep_is_refused_with_the_best():
    planner, _ = planner_of(network(('Relu', '@', {})))

    def searched(start):
        search = Search(lambda higher: KeptResults(90 + 10 * len(higher), 100), 0.999)
        return planner._searched(search, ['a'], start, lambda: dict(a=Damage(own=0.1)))[1]

    with pytest.raises(ExportError, match=r'0\.9900'):
        searched(KeptResults(99, 100))
    assert searched(KeptResults(999, 1000)) == ['a']
