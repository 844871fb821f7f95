"""Kits that several files of tests judge, made once; each with the outputs of ONNX Runtime."""

import shutil
import subprocess
import sys

import pytest

from kits import ATSS, FRAMES, GENERATED, MODULE, load, run


@pytest.fixture(scope='session')
def atss(tmp_path_factory):
    """The kit of the exported ATSS toy in demo/; its own script makes the outputs."""
    from mmdeploy_ext.cli import kit_app

    folder = tmp_path_factory.mktemp('atss')
    kit, outputs = folder / 'kit', folder / 'outputs'
    assert kit_app.main([*ATSS, 'demo/atss_toy.onnx', '--out', str(kit)]) == 0
    command = [sys.executable, str(kit / 'run_onnxruntime.py'), str(outputs)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return kit, outputs


@pytest.fixture(scope='session')
def module_folder(tmp_path_factory):
    """A folder with module.py and its export, m.onnx, of any height and width."""
    import torch

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


@pytest.fixture(scope='session')
def module_kit(module_folder):
    """A kit of the samples of a module as frames, made by the command."""
    from mmdeploy_ext.cli import kit_app

    module = f'{module_folder}/module.py'
    words = [str(module_folder / 'm.onnx'), '--module', f'{module}:make', '--samples', f'{module}:samples']
    words += ['--state', 'memory=memory_out', '--out', str(module_folder / 'kit'), '--zip']
    assert kit_app.main([*words, '--licence', 'CC0-1.0']) == 0
    return run(module_folder / 'kit', module_folder / 'outputs')


@pytest.fixture(scope='session')
def stream(tmp_path_factory):
    """A kit of the toy StreamPETR: four frames, of which the third is of another scene."""
    pytest.importorskip('mm2onnx_driving')
    import toy_streampetr_deploy as toy
    from mmdeploy_ext.bench.kinds import kind_of

    folder = tmp_path_factory.mktemp('stream')
    (folder / 'deploy').mkdir()
    for path in toy.files():
        shutil.copy(path, folder / 'deploy')
    drive = toy.drive(FRAMES, scenes=2)
    detector, files = toy.detector(), str(folder / 'deploy')
    kind_of(detector.family).kit(detector, files, drive, folder / 'kit', GENERATED)
    return run(folder / 'kit', folder / 'outputs')


@pytest.fixture(scope='session')
def sweeps(tmp_path_factory):
    """A kit of the tiny CenterPoint with two sweeps."""
    import toy_centerpoint
    from mmdeploy_ext.bench.kinds import kind_of
    from mmdeploy_ext.runtime.frames import Sweep

    folder = tmp_path_factory.mktemp('sweeps')
    detector, files, _, _ = toy_centerpoint.exported()
    samples = [Sweep(toy_centerpoint.sweep(seed), f'sweep {seed}') for seed in range(2)]
    kind_of(detector.family).kit(detector, str(files), samples, folder / 'kit', GENERATED)
    return run(folder / 'kit', folder / 'outputs')
