"""Kits of any module and any file: its samples, generated inputs, and the frames of a module with a state."""

import json
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from kits import load, run
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.bench.kit.judge import judge, title_of
from mmdeploy_ext.bench.kit.modules import write_module_kit
from mmdeploy_ext.bench.kit.runners import run_onnxruntime
from mmdeploy_ext.cli.kit_app import main
from mmdeploy_ext.proving.modules import ModuleProof


def test_samples_are_frames_with_the_state_of_the_module(module_kit):
    kit, judgement = module_kit[0], judge(*module_kit)
    assert title_of(judgement) == 'EQUAL ON 3 INPUTS AND 3 FRAMES', judgement.failures
    manifest = json.loads((kit / 'manifest.json').read_text())
    assert [frame['reset'] for frame in manifest['frames']] == [True, False, False]
    first, second, _ = manifest['cases']
    assert second['inputs']['memory']['file'] == first['tensors']['memory_out']['file']
    assert 'CC0-1.0' in (kit / 'README.md').read_text()
    with zipfile.ZipFile(f'{kit}.zip') as archive:
        assert 'kit/expected/000/out%2Flogits.bin' in archive.namelist()


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
def test_wrong_inputs_of_a_program_are_refused(module_kit, tmp_path, fault):
    kit = module_kit[0]
    judgement = judge(kit, run_changed(kit, tmp_path / 'o', fault))
    assert title_of(judgement) == 'NOT EQUAL' and any('out/logits' in text for text in judgement.failures)


@pytest.mark.parametrize(('precision', 'factor'), [('fp16', 1.01), ('fp16', 2), ('int8', 1.1)])
def test_outputs_times_a_factor_are_beyond_the_bars_of_float16_and_int8(
    module_kit, tmp_path, precision, factor
):
    for path in module_kit[1].glob('0*.npz'):
        with np.load(path) as arrays:
            np.savez(tmp_path / path.name, **{name: arrays[name] * np.float32(factor) for name in arrays})
    judgement = judge(module_kit[0], tmp_path, precision=precision)
    claim = f'WITHIN {precision.upper()} BARS'
    if factor in (1.01, 1.1):
        assert title_of(judgement) == f'{claim} ON 3 INPUTS', judgement.failures
    else:
        assert title_of(judgement) == f'NOT {claim}'


@pytest.mark.parametrize(
    'option', ['--module m.py:make', '--frames 3', '--mean 1 2 3', '--std 1 2 3', '--seed 1']
)
def test_a_folder_of_parts_takes_the_options_of_parts_alone(tmp_path, capsys, option):
    (tmp_path / 'parts.json').touch()
    words = [str(tmp_path), 'c.py', 'c.pth', '--out', str(tmp_path / 'kit'), *option.split()]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert option.split()[0] in capsys.readouterr().err


def test_a_file_that_is_not_the_module_makes_no_kit(module_folder, tmp_path):
    model = onnx.load(module_folder / 'm.onnx')
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == 'head.weight')
    weight.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / 'wrong.onnx')
    code = load(module_folder)
    with pytest.raises(UsageError, match=r'wrong\.onnx'):
        proof = ModuleProof(code['make'](), tmp_path / 'wrong.onnx', code['samples']())
        write_module_kit(proof, tmp_path / 'kit')
    assert not (tmp_path / 'kit').exists()


class Rounded(torch.nn.Module):
    """A table of pixels and scores; scores in float32 are 1e-5 from those in float64."""

    def forward(self, x):
        off = 1e-5 if x.dtype == torch.float32 else 0.0
        return torch.cat([1000 * x[:, :2], 0.001 * x[:, 2:] + off], 1)


def test_a_score_beside_pixels_is_judged_by_three_distances_from_float64(tmp_path):
    samples, path = (
        [(torch.rand(4, 3, generator=torch.Generator().manual_seed(s)),) for s in (0, 1)],
        'm.onnx',
    )
    torch.onnx.export(Rounded(), samples[0], str(tmp_path / path), dynamo=False, output_names=['table'])
    proof = ModuleProof(Rounded().eval(), tmp_path / path, samples)
    write_module_kit(proof, tmp_path / 'kit', generate=False)
    outputs = run(tmp_path / 'kit', tmp_path / 'outputs')[1]
    arrays = {file: np.load(file)['table'] for file in outputs.glob('0*.npz')}
    for off, equal in ((0, True), (2.5e-5, True), (3.5e-5, False)):
        for file, array in arrays.items():
            np.savez(file, table=array + np.float32([0, 0, off]))
        assert judge(tmp_path / 'kit', outputs).passed == equal
