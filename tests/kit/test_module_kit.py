"""Kits of any module and any file: its samples, generated inputs, and the frames of a module with a state."""

import json
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.cli import kit_app
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.kit.judge import judge
from mmdeploy_ext.kit.modules import write_module_kit
from mmdeploy_ext.kit.runners import run_onnxruntime

MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, image, time, memory):
        pooled = torch.relu(self.conv(image)).mean((2, 3))
        age = torch.sin((time - 1.6e9).float())
        memory = 0.5 * memory + pooled + age
        return self.head(memory), memory

def make():
    torch.manual_seed(0)
    return Net().eval()

def samples():
    generator = torch.Generator().manual_seed(1)
    for index in range(3):
        image = torch.rand(1, 3, 16, 16, generator=generator)
        time = torch.tensor([1.6e9 + 0.5 * index + 0.1], dtype=torch.float64)
        yield image, time, torch.rand(1, 8, generator=generator)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with module.py and its export, m.onnx, of any height and width."""
    folder = tmp_path_factory.mktemp('module')
    (folder / 'module.py').write_text(MODULE)
    code = load(folder)
    torch.onnx.export(
        code['make'](),
        next(code['samples']()),
        str(folder / 'm.onnx'),
        dynamo=False,
        opset_version=17,
        input_names=['image', 'time', 'memory'],
        output_names=['out/logits', 'memory_out'],
        dynamic_axes={'image': {2: 'H', 3: 'W'}},
    )
    return folder


def load(folder):
    code = {}
    exec(compile((folder / 'module.py').read_text(), str(folder / 'module.py'), 'exec'), code)
    return code


@pytest.fixture(scope='module')
def kit(folder):
    """A kit of the samples as frames, made by the command; and its outputs."""
    module = f'{folder}/module.py'
    words = [str(folder / 'm.onnx'), '--module', f'{module}:make', '--samples', f'{module}:samples']
    words += ['--state', 'memory=memory_out', '--out', str(folder / 'kit'), '--zip', '--licence', 'CC0-1.0']
    assert kit_app.main(words) == 0
    run_onnxruntime.main(str(folder / 'outputs'), kit=folder / 'kit')
    return folder / 'kit', folder / 'outputs'


def test_samples_are_frames_with_the_state_of_the_module(kit):
    judgement = judge(*kit)
    assert judgement.title == 'EQUAL ON 3 INPUTS AND 3 FRAMES', judgement.failures
    manifest = json.loads((kit[0] / 'manifest.json').read_text())
    assert [frame['reset'] for frame in manifest['frames']] == [True, False, False]
    first, second, _ = manifest['cases']
    assert second['inputs']['memory']['file'] == first['tensors']['memory_out']['file']
    assert 'CC0-1.0' in (kit[0] / 'README.md').read_text()
    with zipfile.ZipFile(f'{kit[0]}.zip') as archive:
        assert 'kit/expected/000/out%2Flogits.bin' in archive.namelist()


def test_generated_inputs_of_dynamic_axes_are_cases_too(folder, tmp_path):
    code = load(folder)
    manifest = write_module_kit(code['make'](), folder / 'm.onnx', code['samples'](), tmp_path / 'kit')
    titles = [case['title'] for case in manifest['cases']]
    assert {'sample 0', 'H = 17', 'W = 8', 'zeros', 'time alone is another'} <= set(titles)
    assert manifest['frames'] == []


def run_changed(kit, folder, change):
    """Run a kit whose inputs are changed on their way to the engine by `change(arrays)`."""

    def opens(path):
        run = run_onnxruntime.open_file(path)
        return lambda inputs: run(change(dict(inputs)))

    run_onnxruntime.main(str(folder), kit=kit, opens=opens)
    return folder


def as_float32(inputs):
    return inputs | dict(time=inputs['time'].astype(np.float32).astype(np.float64))


def other_channels(inputs):
    return inputs | dict(image=inputs['image'][:, ::-1].copy())


def frozen_memory(inputs):
    return inputs | dict(memory=np.zeros_like(inputs['memory']))


def resized(inputs):
    image = inputs['image']
    return inputs | dict(image=np.repeat(np.repeat(image[..., ::2, ::2], 2, 2), 2, 3))


@pytest.mark.parametrize('fault', [as_float32, other_channels, frozen_memory, resized])
def test_wrong_inputs_of_a_program_are_refused(kit, tmp_path, fault):
    judgement = judge(kit[0], run_changed(kit[0], tmp_path / 'o', fault))
    assert judgement.title == 'NOT EQUAL' and any('out/logits' in text for text in judgement.failures)


@pytest.mark.parametrize(('precision', 'factor'), [('fp16', 1.01), ('fp16', 2), ('int8', 1.1), ('int8', 0.5)])
def test_outputs_times_a_factor_are_beyond_the_bars_of_float16_and_int8(kit, tmp_path, precision, factor):
    for path in kit[1].glob('0*.npz'):
        with np.load(path) as arrays:
            np.savez(tmp_path / path.name, **{name: arrays[name] * np.float32(factor) for name in arrays})
    judgement = judge(kit[0], tmp_path, precision=precision)
    claim = f'WITHIN {precision.upper()} BARS'
    if factor in (1.01, 1.1):
        assert judgement.title == f'{claim} ON 3 INPUTS', judgement.failures
    else:
        assert judgement.title == f'NOT {claim}' and f'norm {factor} times' in judgement.failures[0]


def test_a_file_that_is_not_the_module_makes_no_kit(folder, tmp_path):
    model = onnx.load(folder / 'm.onnx')
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == 'head.weight')
    weight.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / 'wrong.onnx')
    code = load(folder)
    with pytest.raises(UsageError, match='does not compute what the module computes'):
        write_module_kit(code['make'](), tmp_path / 'wrong.onnx', code['samples'](), tmp_path / 'kit')
    assert not (tmp_path / 'kit').exists()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--module', 'm.py:make'], '--inputs or --samples'),
        (['config.py', 'model.pth', '--module', 'm.py:make'], 'does not go with --module'),
        (['config.py', 'model.pth', '--state', 'a=b'], '--state: goes with --module only'),
        ([], 'expected m.onnx CONFIG CHECKPOINT'),
        (['--module', 'm.py:make', '--frames', '3'], '--frames: does not go with --module'),
    ],
)
def test_options_of_another_kind_of_model_are_refused(words, message, tmp_path, capsys):
    assert kit_app.main(['m.onnx', *words, '--out', str(tmp_path / 'kit')]) == 2
    assert message in capsys.readouterr().err


def test_an_output_in_float16_and_of_the_name_file_is_judged_as_any_other(tmp_path):
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2, 3]) for name in ('x', 'file')]
    graph = helper.make_graph([helper.make_node('Add', ['x', 'x'], ['file'])], 'g', tensors[:1], tensors[1:])
    opsets = [helper.make_opsetid('', 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / 'half.onnx')
    sample = torch.arange(6).reshape(2, 3).half()
    kit = tmp_path / 'kit'
    write_module_kit(lambda x: x + x, tmp_path / 'half.onnx', [sample], kit, generate=False)
    run_onnxruntime.main(str(tmp_path / 'outputs'), kit=kit)
    assert judge(kit, tmp_path / 'outputs').title == 'EQUAL ON 1 INPUT'
    judgement = judge(kit, run_changed(kit, tmp_path / 'wrong', lambda inputs: {'x': inputs['x'] + 1}))
    assert judgement.title == 'NOT EQUAL' and 'file: 6 of 6 values differ' in judgement.failures[0]
