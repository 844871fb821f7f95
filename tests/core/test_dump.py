"""Named tensors come back from disk as they were; a damaged dump is refused by name."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmdeploy_ext.cli import dump_app
from mmdeploy_ext.core.dump import MANIFEST, file_name, list_samples, load_dump, save_dump
from mmdeploy_ext.core.errors import DataError, UsageError

TENSORS = dict(
    input=np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
    labels=np.array([[3, -1]], np.int64),
    empty=np.zeros((1, 0, 5), np.float32),
    flag=np.array(True),
)


def test_files_are_named_by_tensor_and_shape(tmp_path):
    save_dump(tmp_path, TENSORS, dict(image='a.jpg'), dict(input='pixels'))
    assert {path.name for path in tmp_path.iterdir()} == {
        MANIFEST,
        'input_1x2x3x4.bin',
        'labels_1x2.bin',
        'empty_1x0x5.bin',
        'flag_scalar.bin',
    }
    assert file_name('x', np.zeros((2, 7))) == 'x_2x7.bin'
    raw = np.fromfile(tmp_path / 'input_1x2x3x4.bin', '<f4')
    np.testing.assert_array_equal(raw, TENSORS['input'].ravel())


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


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    hnp.arrays(
        st.sampled_from(['float32', '>f4', 'float64', 'int64', '>i4', 'uint8', 'bool', 'float16']),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    st.booleans(),
)
def test_any_array_comes_back_bit_for_bit(tmp_path, array, transposed):
    array = array.T if transposed else array
    save_dump(tmp_path, dict(x=array), {})
    loaded = load_dump(tmp_path)[0]['x']
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype == array.dtype.newbyteorder('<')


def test_a_second_dump_replaces_the_first(tmp_path):
    save_dump(tmp_path, TENSORS, {})
    save_dump(tmp_path, dict(other=np.zeros(3, np.float32)), {})
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, 'other_3.bin'}


def test_a_missing_file_is_named(tmp_path):
    save_dump(tmp_path, TENSORS, {})
    (tmp_path / 'labels_1x2.bin').unlink()
    with pytest.raises(DataError, match=r'labels_1x2\.bin.*manifest\.json'):
        load_dump(tmp_path)


@pytest.mark.parametrize('damage', [lambda content: content[:-1], lambda content: b'\x01' + content[1:]])
def test_changed_content_is_named(tmp_path, damage):
    save_dump(tmp_path, TENSORS, {})
    path = tmp_path / 'input_1x2x3x4.bin'
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r'input_1x2x3x4\.bin: .*sha256 differs'):
        load_dump(tmp_path)


def test_a_folder_without_a_whole_dump_is_refused_and_not_listed(tmp_path):
    for name in ('0001', '0000', 'partial'):
        save_dump(tmp_path / name, TENSORS, {})
    (tmp_path / 'partial' / MANIFEST).unlink()
    assert [path.name for path in list_samples(tmp_path)] == ['0000', '0001']
    with pytest.raises(UsageError, match=r'manifest\.json'):
        load_dump(tmp_path / 'partial')
    (tmp_path / '0000' / MANIFEST).write_text(json.dumps({})[:-1])
    with pytest.raises(UsageError, match=r'manifest\.json.*JSON'):
        load_dump(tmp_path / '0000')


NAMES = st.text(st.characters(), max_size=12)
NAMES |= st.sampled_from(
    ['../x', '/etc/x', 'a/b', '..', '.', '', 'a\0b', '%2F', '/', 'x' * 500, 'é' * 300, 'a\\b', 'C:', '\ud800']
)


@settings(max_examples=60, deadline=None)
@given(st.lists(NAMES, min_size=2, max_size=4, unique=True))
def test_any_name_of_a_tensor_stays_in_the_folder(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp('x') / 'dump'
    tensors = {name: np.full(2, place, np.float32) for place, name in enumerate(names)}
    save_dump(folder, tensors, {})
    assert len(list(folder.iterdir())) == len(names) + 1 and len(list(folder.parent.iterdir())) == 1
    loaded, _ = load_dump(folder)
    assert list(loaded) == names
    for name, array in tensors.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_names_that_two_tensors_could_share_give_two_files():
    array = np.zeros(2)
    names = ['a/b', 'a%2Fb', 'a_b', '%', '%25', 'x' * 500, 'x' * 501, '.a', '%2Ea']
    assert len({file_name(name, array) for name in names}) == len(names)
    assert file_name('/head/Conv_output_0', array) == '%2Fhead%2FConv_output_0_2.bin'


def test_a_dump_with_values_left_out_is_equal_to_itself_and_not_to_one_that_has_them(tmp_path, capsys):
    scores = np.array([[np.nan, 0.5, 0.6]])
    tensors = dict(pose=100 * np.eye(4), all_left_out=np.full((1, 3), np.nan))
    for name, array in dict(a=scores, b=scores + 0.1, c=np.nan_to_num(scores)).items():
        save_dump(tmp_path / name, dict(tensors, scores=array), {})
    first = str(tmp_path / 'a')
    assert dump_app.main(['compare', first, first]) == 0
    assert dump_app.main(['compare', first, str(tmp_path / 'b')]) == 1
    assert dump_app.main(['compare', first, str(tmp_path / 'c')]) == 1
    assert '2 of 3 values differ by more than 1e-06' in ' '.join(capsys.readouterr().out.split())
