"""Named tensors come back from disk as they were; a damaged dump is refused by name."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from mmdeploy_ext.base.dump import list_samples, load_dump, replaced_dump, save_dump
from mmdeploy_ext.base.errors import DataError

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


def dump(folder, samples):
    with replaced_dump(folder) as staging:
        for index in range(samples):
            save_dump(staging / f'{index:06d}', TENSORS, dict(sample=index))


def test_a_dump_that_is_interrupted_leaves_the_former_one(tmp_path):
    dump(tmp_path / 'dump', 3)
    (tmp_path / 'dump/notes.txt').write_text('of the user')
    with pytest.raises(KeyboardInterrupt), replaced_dump(tmp_path / 'dump') as staging:
        save_dump(staging / '000000', TENSORS, {})
        raise KeyboardInterrupt
    assert len(list_samples(tmp_path / 'dump')) == 3
    dump(tmp_path / 'dump', 2)
    assert sorted(os.listdir(tmp_path / 'dump')) == ['000000', '000001', 'notes.txt', 'samples.json']
    assert os.listdir(tmp_path) == ['dump'] and len(list_samples(tmp_path / 'dump')) == 2


@pytest.mark.parametrize('missing', ['000001', 'samples.json', '000001/manifest.json'])
def test_a_missing_sample_is_no_smaller_dump(tmp_path, missing):
    dump(tmp_path, 3)
    path = tmp_path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=missing.partition('/')[0]):
        list_samples(tmp_path)


def test_a_folder_without_samples_is_no_dump(tmp_path):
    assert list_samples(tmp_path / 'none') == list_samples(tmp_path) == []


@pytest.mark.parametrize(
    ('key', 'value'), [('file', '../a.bin'), ('dtype', 'x'), ('shape', [7]), ('shape', 'x')]
)
def test_a_malformed_manifest_is_refused(tmp_path, key, value):
    save_dump(tmp_path / 'dump', dict(a=np.zeros(3)), {})
    (tmp_path / 'a.bin').write_bytes(np.zeros(3).tobytes())
    manifest = json.loads((tmp_path / 'dump/manifest.json').read_text())
    manifest['tensors']['a'][key] = value
    (tmp_path / 'dump/manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r'manifest\.json'):
        load_dump(tmp_path / 'dump')
