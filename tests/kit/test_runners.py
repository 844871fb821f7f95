"""The programs and commands of a kit: each runs its inputs from the kit's files alone, and is judged."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import test_frames_kit
import test_kit
import test_module_kit

from marking import in_suite
from mmdeploy_ext.graph.passes.fp16 import to_fp16
from mmdeploy_ext.kit.contents import KitGraph, read_array
from mmdeploy_ext.kit.judge import judge
from mmdeploy_ext.kit.runners import run_onnxruntime

stream, sweeps = test_frames_kit.stream, test_frames_kit.sweeps
folder, kit = test_module_kit.folder, test_module_kit.kit
atss = test_kit.kit
NPM = os.environ.get('KIT_NPM', '')
"""Folder in which `npm install --ignore-scripts onnxruntime-node` was run."""
HEADERS = os.environ.get('KIT_ORT_INCLUDE', '/usr/include/onnxruntime')
"""Folder with onnxruntime_c_api.h, as Debian 13 has it in libonnxruntime-dev."""
OPENVINO = os.environ.get('KIT_OPENVINO_PYTHON', '')
"""Python of an environment with openvino and numpy."""
LIBRARY = 'node_modules/onnxruntime-node/bin/napi-v6/linux/x64/libonnxruntime.so.1'


def run(words, cwd, **environment):
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout


def trtexec(kit, outputs):
    (outputs / 'bin').mkdir(parents=True)
    program = outputs / 'bin/trtexec'
    stand_in = Path(test_frames_kit.__file__).parents[1] / 'fake_trtexec.py'
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in} "$@"\n')
    program.chmod(0o755)
    path = f'{program.parent}:{os.environ["PATH"]}'
    run(['sh', kit / 'run_trtexec.sh', outputs, '--noTF32'], outputs, PATH=path)


def python(kit, outputs):
    run_onnxruntime.main(str(outputs), kit=kit)


def openvino(kit, outputs):
    if not OPENVINO:
        pytest.skip('KIT_OPENVINO_PYTHON names no Python with openvino')
    run([OPENVINO, kit / 'run_openvino.py', outputs], kit.parent, PYTHONPATH='')


def c_api(kit, outputs):
    library = Path(NPM, LIBRARY)
    if not (NPM and library.is_file()):
        pytest.skip('KIT_NPM names no folder with onnxruntime-node')
    if not Path(HEADERS, 'onnxruntime_c_api.h').is_file():
        pytest.skip(f'{HEADERS} has no onnxruntime_c_api.h (Debian 13: libonnxruntime-dev; KIT_ORT_INCLUDE)')
    outputs.mkdir()
    program = outputs / 'program'
    words = ['cc', kit / 'run_c_api.c', '-Wall', '-Werror', '-I', HEADERS, library, '-o', program]
    run([*words, f'-Wl,-rpath,{library.parent}'], kit)
    run([program, outputs], kit)


RUNTIMES = [trtexec, openvino, c_api]


def kit_of(request, name):
    kit, _ = request.getfixturevalue(name)
    return kit


@pytest.mark.parametrize(
    ('name', 'runtime'),
    in_suite(
        [(name, runtime) for name in ('stream', 'sweeps', 'kit') for runtime in RUNTIMES], ('kit', trtexec)
    ),
)
def test_outputs_of_other_programs_are_judged_equal(request, tmp_path, name, runtime):
    kit = kit_of(request, name)
    if name == 'sweeps' and runtime is trtexec:
        pytest.skip('the stand-in reads no tables of a sparse backbone')
    runtime(kit, tmp_path / 'outputs')
    judgement = judge(kit, tmp_path / 'outputs', told=runtime.__name__)
    if (name, runtime) == ('kit', openvino):  # it computes float64, a time here, in float32
        assert judgement.title == 'NOT EQUAL (openvino, as told)'
        return
    assert judgement.equal, judgement.failures
    assert bool(judgement.frames) is (runtime is not trtexec)


def other_channels(arrays):
    arrays['image'] = arrays['image'][:, ::-1]


def frozen_memory(arrays):
    arrays['memory'] = np.zeros_like(arrays['memory'])


def time_in_float32(arrays):
    arrays['time'] = arrays['time'].astype(np.float32).astype(np.float64)


def wrong_resize(arrays):
    arrays['image'] = np.repeat(np.repeat(arrays['image'][..., ::2, ::2], 2, 2), 2, 3)


@pytest.mark.matrix
@pytest.mark.parametrize('fault', [other_channels, frozen_memory, time_in_float32, wrong_resize])
def test_wrong_inputs_in_other_programs_are_refused(kit, tmp_path, fault):
    kit, copy = kit[0], tmp_path / 'kit'
    shutil.copytree(kit, copy)
    for case in json.loads((kit / 'manifest.json').read_text())['cases']:
        arrays = {name: read_array(kit, entry) for name, entry in case['inputs'].items()}
        fault(arrays)
        for name, entry in case['inputs'].items():
            np.ascontiguousarray(arrays[name]).tofile(copy / entry['file'])
    c_api(copy, tmp_path / 'outputs')
    assert judge(kit, tmp_path / 'outputs').title == 'NOT EQUAL'


def batch_mixed_up(kit, case):
    """The pictures of the batch go in in another order, as from a queue that lost one."""
    for entry in case['inputs'].values():
        np.flip(read_array(kit, entry), 0).tofile(kit / entry['file'])


def overflow(kit, case):
    """The file in float16, in which the first feature map is 1e6 times as large as it was."""
    spec = KitGraph.from_json(json.loads((kit / 'manifest.json').read_text())['graphs'][0]).spec
    model = to_fp16(onnx.load(kit / 'model.onnx'), spec)
    node = next(node for node in model.graph.node if node.op_type == 'Conv')
    place, name = list(model.graph.node).index(node), node.output[0]
    node.output[0] = 'features'
    names, factors = ['features', 'large', 'larger', 'small', name], (6e4, 6e4, 1 / 6e4, 1 / 6e4)
    for step, factor in enumerate(factors):
        model.graph.initializer.append(onnx.helper.make_tensor(f'factor {step}', 10, (), [factor]))
        product = onnx.helper.make_node('Mul', [names[step], f'factor {step}'], [names[step + 1]])
        model.graph.node.insert(place + 1 + step, product)
    onnx.save(model, kit / 'model.onnx')


FAULTY_RUNS = {
    batch_mixed_up: ('fp32', 'pairs outside the bars'),
    overflow: ('fp16', '000 traced input'),
}


@pytest.mark.suite('python-batch_mixed_up')
@pytest.mark.parametrize(
    ('runtime', 'fault'),
    in_suite(
        [(runtime, fault) for runtime in (python, c_api) for fault in FAULTY_RUNS],
        (python, batch_mixed_up),
        (python, overflow),
    ),
)
def test_a_run_with_a_mixed_up_batch_or_an_overflow_is_refused(atss, tmp_path, runtime, fault):
    shutil.copytree(atss, tmp_path / 'kit')
    cases = json.loads((atss / 'manifest.json').read_text())['cases']
    case = next(case for case in cases if case['inputs']['input']['shape'][0] > 1)
    fault(tmp_path / 'kit', case)
    runtime(tmp_path / 'kit', tmp_path / 'outputs')
    precision, reason = FAULTY_RUNS[fault]
    judgement = judge(atss, tmp_path / 'outputs', precision=precision)
    assert judgement.title.startswith('NOT ')
    assert any(reason in failure for failure in judgement.failures), judgement.failures


def test_lines_for_programs_without_json_have_all_inputs(kit):
    kit = kit[0]
    manifest = json.loads((kit / 'manifest.json').read_text())
    lines = (kit / 'manifest.txt').read_text().splitlines()
    assert lines[0] == 'case 000 model.onnx'
    assert 'input time float64 1 1 inputs/000/time.bin' in lines
    assert 'output out%2Flogits float32 2 1 4' in lines
    assert [line for line in lines if line.startswith('frame')] == [
        f'frame {frame["outputs"]}' for frame in manifest['frames']
    ]
    assert lines[-1] == 'computed memory memory_out'


def test_the_readme_names_only_files_that_are_there(sweeps):
    kit = sweeps[0]
    text = (kit / 'README.md').read_text()
    for name in re.findall(r'\brun_\w+\.(?:py|sh|c)\b|inputs/[^C]\S+?\.bin', text):
        assert (kit / name).is_file(), name
    assert all(word in text for word in ('trtexec', 'mm2onnx judge', '--fp16', '--noTF32'))


def test_a_runner_without_a_folder_for_outputs_says_how_it_is_called(kit):
    command = [sys.executable, str(kit[0] / 'run_onnxruntime.py')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == 'usage: python run_onnxruntime.py OUTPUTS [OPTION...]\n'
