"""Named tensors come back from disk as they were; a damaged dump is refused by name."""

import hashlib

import numpy as np
import pytest

from mmdeploy_ext.core.dump import load_dump, save_dump
from mmdeploy_ext.core.errors import DataError

TENSORS = dict(
    input=np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
    labels=np.array([[3, -1]], np.int64),
    empty=np.zeros((1, 0, 5), np.float32),
    flag=np.array(True),
)


def test_tensors_and_manifest_come_back(tmp_path):
    save_dump(tmp_path, TENSORS, dict(image='a.jpg'), dict(input='pixels'))
    loaded, manifest = load_dump(tmp_path)
    assert list(loaded) == list(TENSORS)
    for name, array in TENSORS.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name], array)
    assert manifest['image'] == 'a.jpg'
    assert manifest['tensors']['input']['meaning'] == 'pixels'
    digest = hashlib.sha256((tmp_path / 'labels_1x2.bin').read_bytes()).hexdigest()
    assert manifest['tensors']['labels']['sha256'] == digest


@pytest.mark.parametrize('damage', [lambda content: content[:-1], lambda content: b'\x01' + content[1:]])
def test_changed_content_is_named(tmp_path, damage):
    save_dump(tmp_path, TENSORS, {})
    path = tmp_path / 'input_1x2x3x4.bin'
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r'input_1x2x3x4\.bin: .*sha256 differs'):
        load_dump(tmp_path)
