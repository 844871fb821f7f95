"""A verdict says which files it is about: external data too."""

import hashlib
from pathlib import Path

import onnx

from mmdeploy_ext.proving.proof import data_hashes

DEMO = Path(__file__).resolve().parents[2] / 'demo/atss_toy.onnx'


def test_external_data_are_hashed(tmp_path):
    model = onnx.load(DEMO)
    onnx.save(model, tmp_path / 'm.onnx', save_as_external_data=True, location='m.weights', size_threshold=0)
    written = hashlib.sha256((tmp_path / 'm.weights').read_bytes()).hexdigest()
    assert data_hashes([tmp_path / 'm.onnx', DEMO]) == {'data_sha256': {'m.weights': written}}
    with open(tmp_path / 'm.weights', 'r+b') as stream:
        stream.write(b'x')
    assert data_hashes([tmp_path / 'm.onnx'])['data_sha256']['m.weights'] != written


def test_files_of_one_name_in_other_folders_are_told_apart(tmp_path):
    model = onnx.load(DEMO)
    onnx.save(model, tmp_path / 'm.onnx', save_as_external_data=True, location='w.bin', size_threshold=0)
    model = onnx.load(tmp_path / 'm.onnx', load_external_data=False)
    for name, tensor in zip('ab', model.graph.initializer, strict=False):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'w.bin').write_bytes((tmp_path / 'w.bin').read_bytes() + name.encode())
        (entry,) = (entry for entry in tensor.external_data if entry.key == 'location')
        entry.value = f'{name}/w.bin'
    onnx.save(model, tmp_path / 'm.onnx')
    hashes = data_hashes([tmp_path / 'm.onnx'])['data_sha256']
    assert list(hashes) == ['a/w.bin', 'b/w.bin', 'w.bin'] and len({*hashes.values()}) == 3


def test_a_file_that_holds_all_of_itself_says_nothing_more():
    assert data_hashes([DEMO]) == {}
