"""`prove_module` and `mm2onnx prove-module`: right files pass, wrong ones fail, and the reason has a name."""

import copy
import json
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.utils._pytree import tree_structure

import mmdeploy_ext
from mmdeploy_ext.cli import prove_module_app
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.proving.difference import record
from mmdeploy_ext.proving.modules.calls import FlatModule, ModuleCall, read_call
from mmdeploy_ext.proving.modules.generated import other_sizes, other_values
from mmdeploy_ext.proving.modules.loading import call_function, read_samples
from mmdeploy_ext.tasks import matching
from verdicts import cases_of

MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, image, memory):
        pooled = torch.relu(self.conv(image)).mean((2, 3))
        memory = 0.9 * memory + pooled
        return dict(logits=self.head(memory), memory_out=memory)

def make():
    torch.manual_seed(0)
    return Net().eval()

def make_training():
    return Net()

def silent():
    return None

def samples():
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        yield torch.rand(1, 3, 16, 16, generator=generator), torch.rand(1, 8, generator=generator)
"""
NAMES = dict(input_names=['image', 'memory'], output_names=['logits', 'memory_out'])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with module.py and its export, m.onnx."""
    folder = tmp_path_factory.mktemp('module')
    (folder / 'module.py').write_text(MODULE)
    code = load(folder)
    torch.onnx.export(
        code['make'](),
        next(code['samples']()),
        str(folder / 'm.onnx'),
        dynamo=False,
        opset_version=17,
        dynamic_axes={'image': {2: 'H', 3: 'W'}},
        **NAMES,
    )
    return folder


def load(folder):
    code = {}
    exec(compile((folder / 'module.py').read_text(), str(folder / 'module.py'), 'exec'), code)
    return code


@pytest.fixture(scope='module')
def net(folder):
    return load(folder)['make']()


@pytest.fixture(scope='module')
def samples(folder):
    return list(load(folder)['samples']())


def test_a_fresh_export_is_proven_for_every_input(folder, net, samples):
    verdict = mmdeploy_ext.prove_module(net, folder / 'm.onnx', samples)
    assert verdict.title == 'PROVEN' and not verdict.failures
    names = [case.name for case in cases_of(verdict)]
    assert {'sample 2', 'H = 17', 'W = 8', 'memory alone is another', 'zeros'} <= set(names)
    assert json.loads(json.dumps(verdict.to_json()))['verdict'] == 'proven'


def test_without_a_fresh_export_inputs_decide(folder, net, samples):
    verdict = mmdeploy_ext.prove_module(net, folder / 'm.onnx', samples, fresh=False, generate=False)
    assert verdict.title == 'PROVEN' and len(cases_of(verdict)) == 3
    assert verdict.of('file')[0].text == 'not compared: not asked for'


def weights(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith(name))


def scaled_weight(model):
    tensor = weights(model, 'head.weight')
    array = numpy_helper.to_array(tensor) * np.float32(1.001)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def swapped_classes(model):
    tensor = weights(model, 'head.bias')
    array = numpy_helper.to_array(tensor)[[1, 0, 2, 3]].copy()
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def frozen_memory(model):
    constant = numpy_helper.from_array(np.full((1, 8), 0.5, np.float32), 'frozen')
    model.graph.initializer.append(constant)
    for node in model.graph.node:
        node.input[:] = ['frozen' if name == 'memory' else name for name in node.input]


def no_relu(model):
    node = next(node for node in model.graph.node if node.op_type == 'Relu')
    node.op_type = 'Identity'


def zero_logits(model):
    node = next(node for node in model.graph.node if 'logits' in node.output)
    node.output[0] = 'before'
    model.graph.node.append(onnx.helper.make_node('Sub', ['before', 'before'], ['logits']))


def random_logits(model):
    node = next(node for node in model.graph.node if 'logits' in node.output)
    node.output[0] = 'before'
    noise = onnx.helper.make_node('RandomNormalLike', ['before'], ['noise'], scale=1e-9)
    model.graph.node.extend([noise, onnx.helper.make_node('Add', ['before', 'noise'], ['logits'])])


def fixed_batch_mean(model):
    """The mean over 16 x 16 pixels whatever the size of the image."""
    node = next(node for node in model.graph.node if node.op_type == 'ReduceMean')
    node.op_type = 'ReduceSum'
    axes = numpy_helper.from_array(np.array([2, 3]), 'axes')
    count = numpy_helper.from_array(np.float32(256), 'count')
    model.graph.initializer.extend([axes, count])
    keepdims = next(entry.i for entry in node.attribute if entry.name == 'keepdims')
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute('keepdims', keepdims))
    node.input.append('axes')
    mean, node.output[0] = node.output[0], 'sum'
    position = list(model.graph.node).index(node)
    model.graph.node.insert(position + 1, onnx.helper.make_node('Div', ['sum', 'count'], [mean]))


FAULTS = [scaled_weight, swapped_classes, frozen_memory, no_relu, zero_logits, random_logits]
FAULTS += [fixed_batch_mean]


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_file_is_not_proven(folder, net, samples, tmp_path, fault):
    model = onnx.load(folder / 'm.onnx')
    fault(model)
    onnx.save(model, tmp_path / 'wrong.onnx')
    verdict = mmdeploy_ext.prove_module(net, tmp_path / 'wrong.onnx', samples, fresh=False)
    assert verdict.title == 'NOT PROVEN'


def write_text(path, outputs, nodes, producer=''):
    head = f'<ir_version: 8, opset_import: ["": 17], producer_name: "{producer}"> graph (float[3] values)'
    text = f'{head} => ({outputs}) {{ two = Constant<value = float {{2.0}}> () {nodes} }}'
    onnx.save(onnx.parser.parse_model(text), path)


class Scores(torch.nn.Module):
    """Scores of up to 1, which are 1e-6 on zeros."""

    def __init__(self, added=0.0):
        super().__init__()
        self.added = added

    def forward(self, image):
        return torch.sigmoid(image - 13.8) + self.added


def test_small_scores_are_compared_by_a_tenth_of_the_tolerance_of_the_largest(tmp_path):
    samples = [16 * torch.rand(2, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    titles = []
    for added in (2e-6, 2e-5):
        path = tmp_path / f'{added}.onnx'
        torch.onnx.export(Scores(added), (samples[0],), str(path), dynamo=False, opset_version=17)
        verdict = mmdeploy_ext.prove_module(Scores().eval(), path, samples, fresh=False)
        titles.append(verdict.title)
    assert titles == ['PROVEN', 'NOT PROVEN']
    assert [failure.split()[0] for failure in verdict.failures] == ['zeros']


def test_a_generated_input_with_a_huge_result_excuses_no_sample(tmp_path):
    nodes = 'sum = ReduceSum <keepdims = 0> (values) small = Exp (sum) result = Add (small, two)'
    write_text(path := tmp_path / 'huge.onnx', 'float result', nodes)
    samples = [torch.tensor([sign * 30.0, -sign * 30.0, 0.1]) for sign in (1, -1)]  # together at most exp(60)
    verdict = mmdeploy_ext.prove_module(lambda values: values.sum().exp(), path, samples)
    assert {'sample 0', 'sample 1'} <= {case.name for case in cases_of(verdict) if not case.passed}


def test_the_first_difference_names_the_line_of_the_module(folder, samples, tmp_path):
    model = onnx.load(folder / 'm.onnx')
    no_relu(model)
    onnx.save(model, tmp_path / 'wrong.onnx')
    net = load(folder)['make']()
    verdict = mmdeploy_ext.prove_module(net, tmp_path / 'wrong.onnx', samples, fresh=False)
    line = MODULE.splitlines().index('        pooled = torch.relu(self.conv(image)).mean((2, 3))') + 1
    assert f'{folder / "module.py"}:{line},' in verdict.notes[-1]


def test_a_state_is_run_with_the_memory_of_either_side_and_from_the_start_again(folder, net, samples):
    verdict = mmdeploy_ext.prove_module(
        net, folder / 'm.onnx', samples, state={'memory': 'memory_out'}, fresh=False, generate=False
    )
    cases = cases_of(verdict)
    assert verdict.title == 'PROVEN' and len(cases) == 9
    assert cases[-1].name == 'frame 2, free-running after a reset'


def test_a_frame_without_the_state_of_the_next_one_is_refused(tmp_path):
    def module(x, memory):
        result = x + memory
        return dict(y=result, kept=result) if result.max() < 5 else dict(y=result)

    graph = 'g (float[3] x, float[3] memory) => (float[3] y, float[3] kept)'
    nodes = '{ y = Add(x, memory) kept = Identity(y) }'
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {graph} {nodes}')
    onnx.save(model, path := tmp_path / 'sum.onnx')
    frames = [(torch.full((3,), 3.0), torch.zeros(3)) for _ in range(3)]
    with pytest.raises(
        UsageError, match='frame 1, teacher-forced: module returns no kept, which is the memory'
    ):
        mmdeploy_ext.prove_module(module, path, frames, state={'memory': 'kept'})


def test_a_single_frame_shows_nothing_of_a_state(folder, net, samples):
    options = dict(state={'memory': 'memory_out'}, fresh=False, generate=False)
    verdict = mmdeploy_ext.prove_module(net, folder / 'm.onnx', samples[:1], **options)
    assert any('the state: a single sample has no next frame' in line for line in verdict.notes)


def test_results_and_arguments_of_one_name_are_refused(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) { y = Neg(x) }'
    )
    onnx.save(model, path := tmp_path / 'negative.onnx')
    x = torch.ones(3)
    with pytest.raises(UsageError, match=r"sample 0: of the results 2 tensors are called 'a\.b'"):
        mmdeploy_ext.prove_module(lambda x: {'a.b': x, 'a': {'b': -x}}, path, [x])
    with pytest.raises(UsageError, match=r"sample 0: of the arguments 2 tensors are called 'x\.0'"):
        mmdeploy_ext.prove_module(lambda x: -x[0], path, [({0: x, '0': x},)])


def test_a_constant_that_no_input_reaches_is_named_and_its_graph_is_not_compared(tmp_path):
    class Embedded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(50, 4)

        def forward(self, indices):
            return self.table(indices)

    torch.manual_seed(0)
    net, path = Embedded().eval(), tmp_path / 'table.onnx'
    samples = [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 2])]
    torch.onnx.export(net, (samples[0],), str(path), dynamo=False, opset_version=17)
    assert mmdeploy_ext.prove_module(net, path, samples).title == 'PROVEN'
    model = onnx.load(path)
    array = numpy_helper.to_array(model.graph.initializer[0]).copy()
    array[40] += 1
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, model.graph.initializer[0].name))
    onnx.save(model, path)
    verdict = mmdeploy_ext.prove_module(net, path, samples)
    assert 'not compared: another graph' in (text := verdict.of('file')[0].text) and 'table.weight' in text


class Detector(torch.nn.Module):
    """Boxes, scores and labels, best first."""

    def forward(self, rows):
        order = torch.topk(rows[:, 4], 6)[1]
        rows = rows[order]
        return rows[:, :4], rows[:, 4], (rows[:, 5] * 3).long()


class Flat(torch.nn.Module):
    """Maps as rows, with batches of any size."""

    def forward(self, x):
        return 2 * x.flatten(2)


@pytest.mark.parametrize('dynamo', [False, True])
def test_a_file_of_plain_torch_onnx_export_is_proven_whatever_its_graph(tmp_path, dynamo):
    path, samples = tmp_path / 'm.onnx', [(torch.rand(2, 3, 4, 5),) for _ in range(2)]
    torch.onnx.export(Flat(), samples[0], str(path), dynamo=dynamo)
    verdict = mmdeploy_ext.prove_module(Flat().eval(), path, samples)
    assert verdict.proven, verdict.failures
    text = verdict.of('file')[0].text
    assert text.startswith('equal to a fresh export') or f'dynamo={dynamo}, opset_version=' in text


@pytest.fixture(scope='module')
def detections(tmp_path_factory):
    """A file that gives the rows of `Detector` worst first."""
    path = tmp_path_factory.mktemp('rows') / 'rows.onnx'

    class Reversed(Detector):
        def forward(self, rows):
            return tuple(output.flip(0) for output in super().forward(rows))

    torch.onnx.export(
        Reversed(),
        (torch.rand(6, 6),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=['rows'],
        output_names=['boxes', 'scores', 'labels'],
    )
    return path


def test_rows_may_come_in_another_order_only_where_that_is_said(detections):
    samples = [(torch.rand(6, 6, generator=torch.Generator().manual_seed(seed)),) for seed in (0, 1)]
    net, names = Detector().eval(), ('boxes', 'scores', 'labels')
    options = dict(fresh=False, generate=False)
    assert not mmdeploy_ext.prove_module(net, detections, samples, **options).proven
    assert mmdeploy_ext.prove_module(net, detections, samples, rows=names, **options).proven
    assert not mmdeploy_ext.prove_module(net, detections, samples, rows=names[:2], **options).proven


@pytest.mark.parametrize('width', [4, matching.MAX_WIDTH + 1])
def test_rows_that_are_in_order_stay_so(width):
    rows = np.zeros((1500, width))
    rows[:3] = np.arange(3)[:, None]  # the others are equal, as padding is
    masks = np.random.default_rng(0).random((1500, matching.MAX_WIDTH + 1))
    outputs = dict(rows=rows, masks=masks)
    ordered = matching.in_order_of(outputs, outputs, ('rows', 'masks'), 1e-4)
    assert all(np.array_equal(ordered[name], outputs[name]) for name in outputs)


def test_rows_are_ordered_beside_a_thousand_equal_ones():
    rows = np.zeros((1500, 4))
    rows[:3] = np.arange(3)[:, None] + 1  # the others are padding
    outputs = dict(rows=rows[[2, 0, 1, *range(3, 1500)]])
    ordered = matching.in_order_of(dict(rows=rows), outputs, ('rows',), 1e-4)
    assert np.array_equal(ordered['rows'], rows)


def test_outputs_without_rows_stay_so():
    outputs = dict(boxes=np.zeros((0, 4)), scores=np.zeros(0))
    assert matching.in_order_of(outputs, outputs, ('boxes', 'scores'), 1e-4).keys() == outputs.keys()


class Constant(torch.nn.Module):
    def forward(self, image):
        return torch.ones(3) + 0 * image.sum()


def test_a_module_whose_results_never_change_proves_nothing(tmp_path):
    path = tmp_path / 'constant.onnx'
    torch.onnx.export(Constant(), (torch.rand(2),), str(path), dynamo=False, opset_version=17)
    samples = [torch.rand(2), torch.rand(2)]
    assert 'same results' in str(mmdeploy_ext.prove_module(Constant().eval(), path, samples).failures)


@pytest.mark.parametrize(
    ('sample', 'word'),
    [
        (dict(picture=torch.rand(1)), 'picture'),
        ((torch.rand(1, 3, 16, 16),), 'memory'),
        ((torch.rand(1, 4, 16, 16), torch.rand(1, 8)), 'RuntimeError'),
        ((1, 2), 'no tensor'),
    ],
    ids=['name', 'argument missing', 'shape', 'no tensor'],
)
def test_samples_that_do_not_fit_are_refused_by_name(folder, net, sample, word):
    with pytest.raises(UsageError, match=word):
        mmdeploy_ext.prove_module(net, folder / 'm.onnx', [sample])


def test_a_module_in_training_mode_is_refused(folder, samples):
    net = load(folder)['make_training']()
    with pytest.raises(UsageError, match='training mode'):
        mmdeploy_ext.prove_module(net, folder / 'm.onnx', samples)


def test_an_argument_that_the_file_froze_is_found(net, samples, tmp_path):
    path = tmp_path / 'one.onnx'
    memory = samples[0][1]

    class OnlyImage(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, image):
            return self.net(image, memory)

    names = dict(NAMES, input_names=['image'])
    torch.onnx.export(OnlyImage().eval(), samples[0][:1], str(path), dynamo=False, opset_version=17, **names)
    verdict = mmdeploy_ext.prove_module(net, path, samples[:1], fresh=False)
    assert any('frozen' in failure and 'memory' in failure for failure in verdict.failures)


class Scaled(torch.nn.Module):
    """Multiplies by a whole number, of which it takes `numbers`."""

    def __init__(self, numbers=None):
        super().__init__()
        self.numbers = numbers

    def forward(self, values, factor):
        if self.numbers is not None and int(factor) not in self.numbers:
            raise ValueError(factor)
        return values * factor


@pytest.mark.parametrize(('numbers', 'word'), [(None, 'frozen'), ((2,), 'nothing shows that it is unused')])
def test_a_number_that_is_the_same_in_all_samples_may_be_frozen(tmp_path, numbers, word):
    path = tmp_path / 'twice.onnx'
    write_node('Mul', path, [2.0])
    samples = [(torch.rand(3), torch.tensor(2)) for _ in range(2)]
    verdict = mmdeploy_ext.prove_module(Scaled(numbers).eval(), path, samples, fresh=False)
    assert not verdict.proven and any(word in failure for failure in verdict.failures)


def write_node(operator, path, constant, axes=('N',)):
    values = onnx.helper.make_tensor_value_info('values', onnx.TensorProto.FLOAT, axes)
    result = onnx.helper.make_tensor_value_info('result', onnx.TensorProto.FLOAT, axes)
    node = onnx.helper.make_node(operator, ['values', 'constant'], ['result'])
    constant = numpy_helper.from_array(np.float32(constant), 'constant')
    graph = onnx.helper.make_graph([node], 'graph', [values], [result], [constant])
    opset = [onnx.helper.make_opsetid('', 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def test_an_axis_without_entries_grows_by_zeros(tmp_path):
    path = tmp_path / 'more.onnx'
    write_node('Add', path, [1.0])
    samples = [torch.zeros(0), torch.rand(4)]
    verdict = mmdeploy_ext.prove_module(lambda values: values + 1, path, samples)
    assert verdict.proven and 'N = 1' in [case.name for case in cases_of(verdict)], verdict.failures


def test_a_sample_of_fewer_axes_than_the_file_has_fails(tmp_path):
    path = tmp_path / 'more.onnx'
    write_node('Add', path, [1.0], ('N', 'C'))
    assert not mmdeploy_ext.prove_module(lambda values: values + 1, path, [torch.rand(4)]).proven


def test_a_file_that_gives_texts_is_refused(tmp_path):
    path = tmp_path / 'more.onnx'
    write_node('Add', path, [1.0])
    model = onnx.load(path)
    text = onnx.helper.make_tensor('text', onnx.TensorProto.STRING, [1], [b'car'])
    model.graph.node.append(onnx.helper.make_node('Constant', [], ['text'], value=text))
    model.graph.output.append(onnx.helper.make_tensor_value_info('text', onnx.TensorProto.STRING, [1]))
    onnx.save(model, path)
    with pytest.raises(UsageError, match="'text' holds texts"):
        mmdeploy_ext.prove_module(lambda values: (values + 1, values), path, [torch.rand(4)])


@pytest.mark.parametrize('rtol', [float('nan'), float('inf'), -1e-4, 1])
def test_a_tolerance_out_of_range_is_refused(folder, net, samples, rtol):
    with pytest.raises(UsageError, match='tolerance'):
        mmdeploy_ext.prove_module(net, folder / 'm.onnx', samples, rtol=rtol)
    with pytest.raises(UsageError, match='seed -1'):
        mmdeploy_ext.prove_module(net, folder / 'm.onnx', samples, seed=-1)


def test_whole_numbers_at_the_ends_of_their_type_are_generated():
    call = read_call(lambda values: values, torch.tensor([-(2**63), 2**63 - 1] * 4), 'sample')
    values = {value for other in other_values([call], ['values'], 0) for value in other.values[0].tolist()}
    assert {-(2**63), 2**63 - 1} <= values


def test_an_output_that_is_always_zero_beside_a_wrong_one_is_no_division_by_zero(tmp_path):
    path = tmp_path / 'two.onnx'
    nodes = 'right = Sub (values, values) wrong = Mul (values, two)'
    write_text(path, 'float[3] right, float[3] wrong', nodes)
    verdict = mmdeploy_ext.prove_module(lambda values: (values * 0, values * 3), path, [torch.rand(3)])
    assert not verdict.proven and all('wrong' in failure for failure in verdict.failures)


def test_a_module_that_writes_into_its_argument_changes_no_sample(tmp_path):
    def module(values):
        values -= 1
        return values * 3

    path, samples = tmp_path / 'written.onnx', [torch.zeros(3), torch.ones(3)]
    write_text(path, 'float[3] result', 'less = Sub (values, two) result = Mul (less, two)', 'pytorch')
    verdict = mmdeploy_ext.prove_module(module, path, samples)
    assert not samples[0].any() and '(Sub)' in verdict.notes[-1]
    nodes = 'one = Div (two, two) less = Sub (values, one) result = Mul (less, two)'
    write_text(path, 'float[3] result', nodes)
    verdict = mmdeploy_ext.prove_module(module, path, samples)
    assert not verdict.proven and '(Mul)' in verdict.notes[-1]


class TooLong(Exception):
    pass


def test_a_module_may_refuse_generated_inputs_by_an_exception_of_its_own(tmp_path):
    def module(values):
        if len(values) > 3:
            raise TooLong(len(values))
        return values + 1

    write_node('Add', path := tmp_path / 'more.onnx', [1.0])
    verdict = mmdeploy_ext.prove_module(module, path, [torch.rand(3), torch.rand(2)])
    assert verdict.proven and any('TooLong' in line for line in verdict.notes)
    with pytest.raises(UsageError, match='TooLong'):
        mmdeploy_ext.prove_module(module, path, [torch.rand(4)])


def test_a_generated_input_without_results_is_noted_and_ends_no_proof(tmp_path):
    write_node('Add', path := tmp_path / 'more.onnx', [1.0])
    samples = [torch.rand(3), torch.rand(2)]
    verdict = mmdeploy_ext.prove_module(lambda values: values + 1 if values.any() else (), path, samples)
    assert verdict.proven and 'not compared: zeros: the module gives no tensor' in verdict.notes


def test_a_module_without_a_source_file_and_a_result_without_an_output_are_told(tmp_path):
    code = compile('def module(values): return dict(result=values + 1, rest=values)', '<stdin>', 'exec')
    exec(code, names := dict(__name__=__name__))
    write_node('Add', path := tmp_path / 'more.onnx', [1.0])
    verdict = mmdeploy_ext.prove_module(names['module'], path, [torch.rand(3), torch.rand(2)])
    assert verdict.proven and verdict.subject['source_sha256'] == ''
    assert 'not compared: result rest of the module: is no output of the file' in verdict.notes


def test_no_input_is_generated_that_a_sample_already_is():
    assert other_sizes(1, 1) == other_sizes(1, 2) == (2,) and other_sizes(1, 0) == (2, 3)
    call = read_call(lambda values: values, torch.tensor([1, 2]), 'sample')
    assert 'zeros' not in [other.title for other in other_values([call], ['values'], 0)]


USER_FILE = """
from __future__ import annotations
import dataclasses, sys

@dataclasses.dataclass
class Sizes:
    width: int = 3

def width():
    return Sizes().width

def leaves():
    sys.exit(0)

def widths():
    yield 3
    sys.exit(0)
"""


def test_files_of_the_user_are_loaded_and_an_exit_in_them_is_an_error(tmp_path):
    (tmp_path / 'file_of_a_test.py').write_text(USER_FILE)
    (tmp_path / 'ends_in_a_test.py').write_text('import sys\nsys.exit(0)')
    assert call_function(f'{tmp_path}/file_of_a_test.py:width') == 3
    for target in ('file_of_a_test.py:leaves', 'file_of_a_test.py:widths', 'ends_in_a_test.py:main'):
        with pytest.raises(UsageError, match='SystemExit: 0'):
            call_function(f'{tmp_path}/{target}')


def test_a_damaged_compressed_sample_is_refused(tmp_path):
    np.savez_compressed(path := tmp_path / 'sample.npz', image=np.random.default_rng(0).random(1000))
    content = bytearray(path.read_bytes())
    content[200:260] = b'\xff' * 60
    path.write_bytes(content)
    with pytest.raises(UsageError, match='plain arrays'):
        read_samples([str(path)])


def test_a_built_in_function_takes_its_arguments_by_position():
    sample = torch.rand(3)
    call = read_call(torch.sigmoid, sample, 'sample 0', ['x'])
    assert np.array_equal(call.run(torch.sigmoid)['result'], sample.sigmoid())
    assert [*call.run(lambda values: values.sigmoid().numpy())] == ['result']  # an array has the same name
    assert read_call(torch.sigmoid, dict(x=sample), 'sample 0', ['x']).names == call.names


def test_a_sample_of_one_array_is_refused(tmp_path):
    np.save(path := tmp_path / 'sample.npy', np.zeros(3))
    with pytest.raises(UsageError, match='single array'):
        read_samples([str(path)])


def test_the_command_proves_and_refuses(folder, samples, tmp_path, capsys):
    np.savez(folder / 's.npz', image=samples[0][0].numpy(), memory=samples[0][1].numpy())
    words = [f'{folder}/module.py:make', '--onnx', f'{folder}/m.onnx']
    more = ['--inputs', f'{folder}/s.npz', '--samples', f'{folder}/module.py:samples']
    assert prove_module_app.main([*words, *more, '--json', f'{tmp_path}/v.json']) == 0
    assert json.loads((tmp_path / 'v.json').read_text())['verdict'] == 'proven'
    capsys.readouterr()
    refused = [
        ([*words], '--samples'),
        ([*words, '--samples', f'{folder}/module.py:nothing'], 'nothing'),
        ([*words, '--samples', f'{folder}/module.py:silent'], 'gives None'),
        ([f'{folder}/module.py:silent', *words[1:], *more], 'module.py:silent: returns a NoneType'),
        ([*words, '--inputs', f'{folder}/module.py'], '.npz'),
        ([*words, *more, '--state', 'memory'], '--state'),
        ([*words, *more, '--state', 'memory=other'], 'other'),
        ([*words, *more, '--state', 'memory=memory_out', 'memory=other'], 'the value of memory_out already'),
        ([f'{folder}/none.py:make', *words[1:], *more], 'none.py'),
    ]
    for line, word in refused:
        assert prove_module_app.main(line) == 2, line
        assert word in capsys.readouterr().err


def test_a_module_is_copied_without_the_warning_of_torch_about_copied_trees():
    call = ModuleCall('sample', (torch.ones(1),), ('x',), tree_structure(((0,), {})))
    flat = FlatModule(torch.nn.Identity(), call, {'x': 'x'}, {'y': 'result'})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        copied = copy.deepcopy(flat)
    assert copied.module is not flat.module and torch.equal(copied(torch.ones(1))[0], torch.ones(1))


def test_a_folder_whose_name_begins_as_a_librarys_is_the_users():
    code = compile('line = record.line_of_user()', mmdeploy_ext.__path__[0] + '_models/net.py', 'exec')
    exec(code, names := dict(record=record))
    assert names['line'].endswith('_models/net.py:1')


class Choosing(torch.nn.Module):
    """Doubles what no sample has: large values, or large maps."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        if self.by == 'values' and x.max() > 100:
            x = x * 2
        if self.by == 'sizes' and x.shape[0] > 400:
            x = x * 2
        return x + 1


@pytest.mark.parametrize(('by', 'warned'), [('values', 1), ('sizes', 1), ('', 0)])
def test_lines_that_pytorch_warns_of_are_named_and_decide_nothing(tmp_path, by, warned):
    module, path, axes = Choosing(by).eval(), tmp_path / 'm.onnx', {0: 'N'}
    names = dict(input_names=['x'], output_names=['y'], dynamic_axes=dict(x=axes, y=axes))
    torch.onnx.export(module, torch.rand(4), str(path), dynamo=False, opset_version=17, **names)
    verdict = mmdeploy_ext.prove_module(module, path, [torch.rand(4), torch.rand(4)])
    assert verdict.title == 'PROVEN' and len(verdict.untraced) == warned
    assert all('test_prove_module.py:' in line and 'Python boolean' in line for line in verdict.untraced)
