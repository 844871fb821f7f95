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
