"""`prove_module` and `mm2onnx prove-module`: right files pass, wrong ones fail, and the reason has a name."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import mmdeploy_ext
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.cli import prove_module_app
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
    assert {'sample 2', 'H = 17', 'W = 8', 'memory alone changed', 'zeros'} <= set(names)
    assert json.loads(json.dumps(verdict.to_json()))['verdict'] == 'proven'


def weights(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith(name))


def scaled_weight(model):
    tensor = weights(model, 'head.weight')
    array = numpy_helper.to_array(tensor) * np.float32(1.001)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def frozen_memory(model):
    constant = numpy_helper.from_array(np.full((1, 8), 0.5, np.float32), 'frozen')
    model.graph.initializer.append(constant)
    for node in model.graph.node:
        node.input[:] = ['frozen' if name == 'memory' else name for name in node.input]


def no_relu(model):
    node = next(node for node in model.graph.node if node.op_type == 'Relu')
    node.op_type = 'Identity'


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


FAULTS = [scaled_weight, frozen_memory, no_relu, random_logits, fixed_batch_mean]


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_file_is_not_proven(folder, net, samples, tmp_path, fault):
    model = onnx.load(folder / 'm.onnx')
    fault(model)
    onnx.save(model, tmp_path / 'wrong.onnx')
    verdict = mmdeploy_ext.prove_module(net, tmp_path / 'wrong.onnx', samples, fresh=False)
    assert verdict.title == 'NOT PROVEN'


def test_a_state_is_run_with_the_memory_of_either_side_and_from_the_start_again(folder, net, samples):
    verdict = mmdeploy_ext.prove_module(
        net, folder / 'm.onnx', samples, state={'memory': 'memory_out'}, fresh=False, generate=False
    )
    cases = cases_of(verdict)
    assert verdict.title == 'PROVEN' and len(cases) == 9
    assert cases[-1].name == 'frame 2, free-running after a reset'


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


def test_a_file_of_plain_torch_onnx_export_equals_a_fresh_export(tmp_path):
    path, samples = tmp_path / 'm.onnx', [(torch.rand(2, 3, 4, 5),) for _ in range(2)]
    torch.onnx.export(Flat(), samples[0], str(path), dynamo=False)
    verdict = mmdeploy_ext.prove_module(Flat().eval(), path, samples)
    assert verdict.proven, verdict.failures
    assert verdict.of('file')[0].text.startswith('equal to a fresh export')


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
        ([f'{folder}/module.py:silent', *words[1:], *more], 'module.py:silent'),
        ([*words, '--inputs', f'{folder}/module.py'], '.npz'),
        ([*words, *more, '--state', 'memory=other'], 'other'),
    ]
    for line, word in refused:
        assert prove_module_app.main(line) == 2, line
        assert word in capsys.readouterr().err


class Function(torch.nn.Module):
    """Seeded layers and a function of them and the inputs."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(4)
        self.rows, self.conv = torch.nn.Linear(8, 5), torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm, self.instance = torch.nn.LayerNorm(5), torch.nn.InstanceNorm2d(4)
        self.function = function
        self.eval()

    def forward(self, *tensors):
        return self.function(self, *tensors)


def table(seed, count=7):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def proof_of(tmp_path, function, written, samples, options=None, **proof):
    """Prove the file of `written` against `function`."""
    path = tmp_path / 'm.onnx'
    torch.onnx.export(
        Function(written), samples[0], str(path), dynamo=False, opset_version=17, **(options or {})
    )
    return mmdeploy_ext.prove_module(Function(function), path, samples, **proof)


def failed_levels(verdict):
    return {finding.level for finding in verdict.findings if not finding.passed}


def test_every_image_of_a_generated_batch_differs(tmp_path):
    def first_image(net, x):
        return net.conv(x[:1]).expand(x.shape[0], -1, -1, -1)

    samples = [(torch.rand(1, 3, 6, 6),)]
    options = dict(input_names=['x'], output_names=['y'], dynamic_axes=dict(x={0: 'B'}, y={0: 'B'}))
    verdict = proof_of(tmp_path, lambda net, x: net.conv(x), first_image, samples, options, fresh=False)
    assert 'B = 2' in [case.name for case in cases_of(verdict) if not case.passed]


def test_a_bool_that_is_false_in_all_samples_is_also_true(tmp_path):
    def switched(net, x, flag):
        return torch.where(flag, net.rows(x), net.rows(2 * x))

    def wrong(net, x, flag):
        return torch.where(flag, net.rows(3 * x), net.rows(2 * x))

    samples = [(table(seed), torch.zeros(1, dtype=torch.bool)) for seed in (0, 1)]
    assert proof_of(tmp_path, switched, switched, samples).proven
    assert not proof_of(tmp_path, switched, wrong, samples, fresh=False).proven


def clamped(most):
    return lambda net, x: net.norm(net.rows(x)).clamp(max=most)


def test_a_graph_of_the_installed_pytorch_has_no_other_attributes_integers_or_nodes(tmp_path):
    def other_epsilon(net, x):
        return torch.nn.functional.layer_norm(net.rows(x), (5,), net.norm.weight, net.norm.bias, 1.01e-5)

    def unclamped(net, x):
        return net.norm(net.rows(x))

    samples = [(table(seed),) for seed in (0, 1)]
    assert proof_of(tmp_path, clamped(1e3), clamped(1e3), samples).proven
    assert failed_levels(proof_of(tmp_path, unclamped, other_epsilon, samples)) == {'file'}
    assert failed_levels(proof_of(tmp_path, clamped(1e3), unclamped, samples)) == {'file'}
    assert proof_of(tmp_path, clamped(1e3), unclamped, samples, fresh=False).proven


def test_constants_that_were_not_folded_are_no_other_graph(tmp_path):
    samples = [(table(seed),) for seed in (0, 1)]
    unfolded = dict(do_constant_folding=False)
    assert proof_of(tmp_path, clamped(1e3), clamped(1e3), samples, unfolded).of('file')[0].figures['equal']


def best(net, x, flipped=False, moved=0):
    scores = net.rows(x)[:, 0]
    places = scores.flip(0).topk(6)[1] if flipped else scores.topk(6)[1]
    places = len(x) - 1 - places if flipped else places
    return scores[places], places, net.rows(x)[(places + moved) % len(x)]


def test_equal_scores_come_in_any_order_in_a_sample_too(tmp_path):
    samples = [(table(seed)[[0, 1, 0, 2, 1, 2, 2]],) for seed in (0, 1)]
    assert proof_of(
        tmp_path, best, lambda net, x: best(net, x, flipped=True), samples, fresh=False, generate=False
    ).proven
    for wrong in (dict(moved=1), dict(flipped=True, moved=1)):
        written = lambda net, x, wrong=wrong: best(net, x, **wrong)  # noqa: E731
        assert not proof_of(tmp_path, best, written, samples, fresh=False, generate=False).proven


def test_a_generated_input_whose_result_rounding_decides_is_left_out_and_counted(tmp_path):
    def normalised(net, x):
        return net.instance(net.conv(x) + 100 * net.rows.bias.sum())

    samples = [(torch.rand(1, 3, 6, 6),) for _ in range(2)]
    right = proof_of(tmp_path, normalised, normalised, samples, fresh=False)
    assert right.proven, right.failures

    def labels(net, x):
        return (x * net.rows.weight[0]).argmax(1)

    def last_of_equals(net, x):
        return 7 - (x * net.rows.weight[0]).flip(1).argmax(1)

    samples = [(table(seed),) for seed in (0, 1)]
    verdict = proof_of(tmp_path, labels, last_of_equals, samples, fresh=False)
    assert verdict.proven, verdict.failures
    assert any(note.endswith('their results: zeros') for note in verdict.notes), verdict.notes
    assert not proof_of(
        tmp_path, labels, lambda net, x: (labels(net, x) - 1).clamp(min=0), samples, fresh=False
    ).proven
