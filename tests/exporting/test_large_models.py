"""A model over protobuf's 2 GiB is a pair, m.onnx and m.onnx.data, in every command; here it is 100 kB."""

import contextlib
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mmdeploy_ext import open_model
from mmdeploy_ext.base.files import external_locations, locked, sha256_onnx
from mmdeploy_ext.base.heap import resident_bytes
from mmdeploy_ext.cli import export_app, info_app, kit_app, run_app, verify_app
from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
from mmdeploy_ext.exporting.export import export_stages
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec import digest
from mmdeploy_ext.spec.options import DYNAMIC, EXPORTER, OPSET, SIMPLIFY, Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec
from refusals import refused
from toy_atss import CHECKPOINT, CONFIG, PICTURE, SHIPPED, export_toy, load_toy

PAIR = ['m.onnx', 'm.onnx.data']


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    monkeypatch.setattr(files, 'PROTOBUF_LIMIT', 100_000)


def export(*words):
    return [CONFIG, CHECKPOINT, *map(str, words)]


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    path = tmp_path_factory.mktemp('large') / 'm.onnx'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, 'PROTOBUF_LIMIT', 100_000)
        return Path(export_toy(load_toy(), path))


@pytest.mark.matrix
def test_the_pair_is_proven_and_a_kit_has_it(pair, tmp_path):
    assert verify_app.main([CONFIG, CHECKPOINT, str(pair)]) == 0
    words = [str(pair), CONFIG, CHECKPOINT, '--out', str(tmp_path / 'kit')]
    assert kit_app.main(words) == 0
    (model,) = (tmp_path / 'kit').rglob('*.onnx')
    assert external_locations(model)
    onnx.checker.check_model(model)


def test_the_pair_gives_the_results_of_a_single_file(pair, tmp_path):
    assert sorted(path.name for path in pair.parent.iterdir()) == PAIR
    assert pair.stat().st_size < 300_000 < pair.with_name(PAIR[1]).stat().st_size
    picture = read_image(PICTURE)
    with open_model(pair) as model, open_model(SHIPPED) as single:
        boxes = [opened(picture).bboxes_xyxy for opened in (model, single)]
        np.testing.assert_allclose(*boxes, rtol=1e-5, atol=1e-3)
    assert run_app.main([str(pair), str(PICTURE), '--out', str(tmp_path)]) == 0
    assert info_app.main([str(pair)]) == 0


def test_a_byte_of_the_weights_changes_digest_and_hash(pair, tmp_path):
    copy = shutil.copytree(pair.parent, tmp_path / 'copy') / 'm.onnx'
    before = sha256_onnx(copy)
    data = bytearray(copy.with_name(PAIR[1]).read_bytes())
    data[4096] ^= 1
    copy.with_name(PAIR[1]).write_bytes(data)
    assert digest.state(copy) == digest.DAMAGED and digest.state(pair) == digest.WHOLE
    assert sha256_onnx(copy) != before == sha256_onnx(pair)


@pytest.mark.matrix
def test_float16_is_rounded_in_a_session_of_a_large_model(tmp_path):
    path = export_toy(load_toy(), tmp_path / 'm.onnx', precision='fp16', dynamic=False, height=64, width=64)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == PAIR
    feeds = dict(input=np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32))
    results = []
    for limit in (100_000, 2**31):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, 'PROTOBUF_LIMIT', limit)
            with OnnxRuntimeBackend(path, round_fp16=True) as backend:
                results.append(backend.infer(backend.spec.with_defaults(feeds)))
    np.testing.assert_array_equal(results[0]['dets'], results[1]['dets'])


def test_what_a_large_model_does_not_take_is_refused_before_the_trace(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('torch.onnx.export', None)
    (tmp_path / 'link.onnx').symlink_to(tmp_path / 'm.onnx')
    for option, said in (('link.onnx', '.data'), ('m.onnx --simplify', '--simplify')):
        name, *flags = option.split()
        assert said in refused(capsys, export_app.main, *export('--out', tmp_path / name, *flags), status=1)


def test_a_pair_of_two_exports_is_damaged_unless_a_command_is_writing_it(pair, tmp_path):
    path = tmp_path / 'm.onnx'
    model = files.load(pair)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = bytes(len(weight.raw_data))
    files.save(model, path)
    data = path.with_name(PAIR[1])
    data.rename(tmp_path / 'other.data')
    shutil.copy(pair.with_name(PAIR[1]), data)  # as if killed between two moves
    assert digest.state(path) == digest.DAMAGED

    def finish():
        time.sleep(0.1)
        (tmp_path / 'other.data').replace(data)
        lock.close()

    lock = contextlib.ExitStack()
    lock.enter_context(locked(tmp_path))
    writer = threading.Thread(target=finish)
    writer.start()
    assert digest.state(path) == digest.WHOLE
    writer.join()
    shutil.copy(pair.with_name(PAIR[1]), data)
    files.save(model, path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == PAIR
    assert digest.state(path) == digest.WHOLE


class Sums(torch.nn.Module):
    def forward(self, y):
        return y.sum(1) * torch.arange(y.shape[1]).sum()


def test_an_export_makes_less_than_two_copies_of_the_weights():
    layers = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(16))).eval()
    x, y = (TensorSpec(name, 'float32', (1, 1024)) for name in 'xy')
    stages = [Stage('layers', layers, ('x',), ('y',)), Stage('sums', Sums(), ('y',), ('sums',))]
    spec = GraphSpec('toy', (x,), (y, TensorSpec('sums', 'float32', (1,))))
    status = Path('/proc/self/status')
    try:
        Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    except OSError:
        pytest.skip('no peak of the memory here')
    before = resident_bytes()
    model = export_stages(
        stages, dict(x=torch.zeros(1, 1024)), spec, Options((OPSET, EXPORTER, SIMPLIFY, DYNAMIC))
    )
    peak = re.search(r'VmHWM:\s*(\d+) kB', status.read_text())
    weights = sum(tensor.nbytes for tensor in layers.parameters())
    assert model.ByteSize() > weights
    assert int(peak[1]) * 1024 - before < 2 * weights
