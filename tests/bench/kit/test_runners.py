"""The programs and commands of a kit: each runs its inputs from the kit's files alone, and is judged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from kits import run
from mmdeploy_ext.bench.kit.contents import KitGraph, StoredArray, read_array
from mmdeploy_ext.bench.kit.engine_files import DETECT, RUNNERS, shape_ranges, triton_config
from mmdeploy_ext.bench.kit.judge import judge
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec
from toy_atss import PICTURE, export_toy, load_toy

HEADERS = os.environ.get('KIT_ORT_INCLUDE', '/usr/include/onnxruntime')
"""Folder with onnxruntime_c_api.h, as Debian 13 has it in libonnxruntime-dev."""
FAKE_TRTEXEC = Path(__file__).with_name('fake_trtexec.py')


def call(words, cwd, **environment):
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def trtexec(kit, outputs):
    (outputs / 'bin').mkdir(parents=True)
    program = outputs / 'bin/trtexec'
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_TRTEXEC} "$@"\n')
    program.chmod(0o755)
    path = f'{program.parent}:{os.environ["PATH"]}'
    call(['sh', kit / 'run_trtexec.sh', outputs, '--noTF32'], outputs, PATH=path)


def library_in(folder):
    """Link the library of the Python package, as programs look for it; skip the test without headers."""
    if not Path(HEADERS, 'onnxruntime_c_api.h').is_file():
        pytest.skip(f'{HEADERS} has no onnxruntime_c_api.h (Debian 13: libonnxruntime-dev; KIT_ORT_INCLUDE)')
    libraries = sorted(Path(onnxruntime.__file__).parent.glob('capi/libonnxruntime.so.*'))
    if not libraries:
        pytest.skip('the Python package onnxruntime has no libonnxruntime')
    (folder / 'libonnxruntime.so.1').symlink_to(libraries[0])
    return folder / 'libonnxruntime.so.1'


def c_api(kit, outputs):
    outputs.mkdir()
    program, library = outputs / 'program', library_in(outputs)
    words = ['cc', kit / 'run_c_api.c', '-Wall', '-Werror', '-I', HEADERS, library, '-o', program]
    call([*words, f'-Wl,-rpath,{outputs}'], kit)
    call([program, outputs], kit)


def test_the_commands_for_trtexec_give_equal_outputs(module_kit, tmp_path):
    trtexec(module_kit[0], tmp_path / 'outputs')
    judgement = judge(module_kit[0], tmp_path / 'outputs')
    assert judgement.passed and not judgement.subject['frames'], judgement.failures


def test_engines_are_told_the_sizes_of_all_cases_and_the_types():
    shapes = [1, 3, 64, 96], [2, 3, 32, 128]
    ranges = shape_ranges([dict(inputs=dict(x=dict(shape=shape), t=dict(shape=[]))) for shape in shapes])
    assert ranges == dict(min=dict(x=[1, 3, 32, 96]), opt=dict(x=shapes[0]), max=dict(x=[2, 3, 64, 128]))
    sides = (TensorSpec('x', 'float16', ('B', 3, 'H', 96)),), (TensorSpec('n', 'int64', ('B',)),)
    lines = triton_config(KitGraph('m', 'a/m.onnx', None, GraphSpec('g', *sides))).splitlines()
    assert 'default_model_filename: "m.onnx"' in lines and 'max_batch_size: 0' in lines
    assert lines[-2:] == [
        'input [{ name: "x", data_type: TYPE_FP16, dims: [-1, 3, -1, 96] }]',
        'output [{ name: "n", data_type: TYPE_INT64, dims: [-1] }]',
    ]


def test_the_program_in_cpp_prints_the_detections_of_a_picture(tmp_path):
    words = ['c++', '-std=c++17', '-Wall', RUNNERS / DETECT, '-isystem', HEADERS, library_in(tmp_path)]
    call([*words, f'-Wl,-rpath,{tmp_path}', '-o', 'detect'], tmp_path)
    hosts = dict(input='uint8-nhwc', channels='rgb', required_inputs=True, outputs='efficient-nms')
    path = export_toy(load_toy(), tmp_path / 'hosts.onnx', **hosts)
    picture = cv2.resize(read_image(PICTURE), (310, 250))
    cv2.imwrite(str(tmp_path / 'picture.ppm'), picture)
    printed = call([tmp_path / 'detect', path, 'picture.ppm', 0.5], tmp_path)
    pixels = np.zeros((1, 256, 320, 3), np.uint8)
    pixels[0, :250, :310] = picture[..., ::-1]
    feeds = dict(img_shape=np.float32([[250, 310]]), scale_factor=np.full((1, 4), 0.5, np.float32))
    outputs = onnxruntime.InferenceSession(path).run(None, dict(feeds, input=pixels))
    (count,), boxes, scores, labels = (array[0] for array in outputs)
    expected = np.column_stack([labels, scores, boxes])[:count]
    assert count > 3
    np.testing.assert_allclose(np.loadtxt(printed.splitlines()), expected, atol=0.01)


@pytest.mark.matrix
@pytest.mark.parametrize('runtime', [trtexec, c_api])
@pytest.mark.parametrize('name', ['stream', 'sweeps', 'module_kit'])
def test_outputs_of_other_programs_are_judged_equal(request, tmp_path, name, runtime):
    kit, _ = request.getfixturevalue(name)
    if name == 'sweeps' and runtime is trtexec:
        pytest.skip('the stand-in reads no tables of a sparse backbone')
    runtime(kit, tmp_path / 'outputs')
    judgement = judge(kit, tmp_path / 'outputs', told=runtime.__name__)
    assert judgement.passed, judgement.failures
    assert bool(judgement.subject['frames']) is (runtime is not trtexec)


def test_an_option_is_no_folder_of_outputs(tmp_path):
    words = [sys.executable, RUNNERS / 'run_onnxruntime.py', '--help']
    done = subprocess.run(list(map(str, words)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and 'OUTPUTS' in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_mixed_up_batch_is_refused(atss, tmp_path):
    """The pictures of the batch go in in another order, as from a queue that lost one."""
    kit = Path(shutil.copytree(atss[0], tmp_path / 'kit'))
    cases = json.loads((kit / 'manifest.json').read_text())['cases']
    case = next(case for case in cases if case['inputs']['input']['shape'][0] > 1)
    for entry in case['inputs'].values():
        np.flip(read_array(kit, StoredArray(**entry)), 0).tofile(kit / entry['file'])
    judgement = judge(atss[0], run(kit, tmp_path / 'outputs')[1])
    assert not judgement.passed and judgement.failures[0].startswith(case['name'])
    assert any('exchanged' in failure for failure in judgement.failures)
