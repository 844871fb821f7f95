"""SIGKILL at random moments of an export and of `quantize`: what was there before is there, or the new."""

import os
import random
import sys
import time

import cv2
import numpy as np
import pytest

from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.files import sha256_file
from rank_processes import REPOSITORY, SERVER, serve
from table_rows import ROW

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(3600)]
MOMENTS, SEED = 30, 45
STREAM = 'projects/configs/StreamPETR/stream_petr_toy.py', 'demo/checkpoints/stream_petr_toy.pth'
ATSS = 'configs/demo/atss_toy.py', 'demo/checkpoints/atss_toy.pth'
EXPORT, QUANTIZE = 'tools/deployment/pytorch2onnx.py', 'tools/deployment/quantize.py'


def tool(words, log):
    """Run a script of the repository with its words, in a process of its own."""
    import runpy

    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(REPOSITORY)
    sys.argv = [str(word) for word in words]
    runpy.run_path(sys.argv[0], run_name='__main__')


def start(words, log):
    serve()
    process = SERVER.Process(target=tool, args=(words, str(log)))
    process.start()
    return process


def run(words, log):
    """Run to the end; return the seconds that it took."""
    begun = time.monotonic()
    process = start(words, log)
    process.join(600)
    assert process.exitcode == 0, log.read_text()
    return time.monotonic() - begun


def hashes(path):
    """Return the files of a folder, or the one, with their hashes; empty where nothing is."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return {file.name: sha256_file(file) for file in files}


def write_drive(folder, model):
    """Write two pictures per camera, as the rule of a model takes them."""
    rule, rng = read_metadata(str(model)).preprocess, np.random.default_rng(0)
    for camera in rule.cameras:
        (folder / camera).mkdir(parents=True)
        for number in range(2):
            picture = rng.integers(0, 256, (*rule.source, 3), np.uint8)
            cv2.imwrite(str(folder / camera / f'{number}.png'), picture)
    return folder


def case(name, folder, log):
    """Return what is written, and the words that write it and that have written it before."""
    if name == 'export':
        words = [EXPORT, *STREAM, '--output-file', folder / 'graphs', '--opset']
        return folder / 'graphs', [*words, '17'], [*words, '16']
    words = ['--calibrate', REPOSITORY / 'demo/toy.jpg', '--rounds', '0', '--output', folder / 'int8.onnx']
    if name == 'quantize':
        words = [QUANTIZE, REPOSITORY / 'demo/atss_toy.onnx', *words]
        return folder / 'int8.onnx', words, [*words, '--method', 'percentile']
    run([EXPORT, *STREAM, '--output-file', folder / 'graphs'], log)
    drive = write_drive(folder / 'drive', folder / 'graphs/extract_img_feat.onnx')
    words = [QUANTIZE, folder / 'graphs', '--calibrate', drive, '--rounds', '0', '--output', folder / 'int8']
    return folder / 'int8', words, [*words, '--method', 'percentile']


@pytest.mark.parametrize('name', ['export', 'quantize', 'quantize a folder'])
def test_a_kill_at_any_moment_loses_nothing(name, tmp_path, record_property):
    log = tmp_path / 'log'
    target, words, before = case(name, tmp_path / 'w', log)
    run(before, log)
    old = hashes(target)
    seconds = run(words, log)
    new = hashes(target)
    assert old and new and old != new
    run(before, log)
    assert hashes(target) == old
    rng, ended = random.Random(SEED), {'old': 0, 'new': 0}
    for _ in range(MOMENTS):
        process = start(words, log)
        time.sleep(rng.uniform(0, 1.1 * seconds))
        process.kill()
        process.join()
        found = hashes(target)
        assert found in (old, new), found
        ended['old' if found == old else 'new'] += 1
        if found == new:
            run(before, log)
    run(words, log)
    assert hashes(target) == new
    record_property(ROW, f'{name}: killed {MOMENTS} times within {seconds:.1f} s: {ended}')
