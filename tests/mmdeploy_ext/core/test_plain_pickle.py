"""Plain pickles of every protocol come back as they were; what might run code is refused."""

import builtins
import collections
import os
import pickle
import re
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmdeploy_ext.core import plain_pickle
from mmdeploy_ext.core.errors import DataError

PROTOCOLS = range(6)
DTYPES = ['?', 'i1', 'u2', '>i4', '<i8', 'f2', 'f4', '>f8', 'c8', 'U3', 'S2']
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda name: hnp.arrays(np.dtype(name), SHAPES))
LAID_OUT = st.one_of(ARRAYS, ARRAYS.map(np.asfortranarray), ARRAYS.map(lambda array: array.T))
TEXTS = st.text(st.characters(exclude_categories=['Cs']), max_size=6)
LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.binary(max_size=6), LAID_OUT),
    *(st.binary(max_size=3).map(bytearray), LAID_OUT.filter(np.size).map(lambda array: array.flat[0])),
    *(st.sets(st.integers(), max_size=3), st.frozensets(TEXTS, max_size=3)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(TEXTS, inner, max_size=3),
        st.dictionaries(TEXTS, inner, max_size=2).map(collections.OrderedDict),
        st.lists(inner, min_size=1, max_size=3).map(lambda values: objects(values)),
    ),
    max_leaves=8,
)


def objects(values):
    """Return an array of objects."""
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def assert_equal(read, value):
    """Check types and values, at any depth; of numbers the bits, since a NaN is not equal to itself."""
    assert type(read) is type(value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        assert (read.dtype, read.shape, read.tobytes()) == (value.dtype, value.shape, value.tobytes())
    elif isinstance(value, dict):
        assert_equal(list(read.items()), list(value.items()))
    elif isinstance(value, list | tuple | np.ndarray):
        assert len(read) == len(value)
        for pair in zip(read, value, strict=True):
            assert_equal(*pair)
    else:
        assert read == value or repr(read) == repr(value) == 'nan'


@pytest.mark.parametrize('protocol', PROTOCOLS)
@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_plain_values_of_every_protocol_come_back(protocol, value):
    assert_equal(plain_pickle.loads(pickle.dumps([value], protocol))[0], value)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_an_object_that_is_there_twice_is_one_object(protocol):
    shared = dict(boxes=np.zeros((2, 7)))
    itself = [shared, (shared, np.arange(3))]
    itself.append(itself)
    read = plain_pickle.loads(pickle.dumps(itself, protocol))
    assert read[0] is read[1][0] and read[2] is read and read[0]['boxes'].shape == (2, 7)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_arrays_of_objects_come_back_in_every_layout(protocol):
    array = objects([1, 'a', None, 2.5, [3], ()]).reshape(2, 3)
    for value in (array, np.asfortranarray(array), array.T):
        assert plain_pickle.loads(pickle.dumps(value, protocol)).tolist() == value.tolist()


def of_numpy_2(content):
    """Return a pickle of protocol 0 to 3 with the names that NumPy 2 has."""
    return content.replace(b'numpy.core.', b'numpy._core.')


@pytest.mark.parametrize('protocol', range(4))
def test_arrays_of_numpy_2_come_back(protocol):
    value = [np.arange(6.0).reshape(2, 3), np.zeros((0, 4)), np.float32(3), np.array(['a', ''])]
    content = of_numpy_2(pickle.dumps(value, protocol))
    assert b'numpy._core.multiarray' in content
    assert_equal(plain_pickle.loads(content), value)


@pytest.mark.parametrize('core', ['core', '_core'])
def test_buffers_of_protocol_5_come_back(core):
    # NumPy 2.3 adds the order of the axes in memory
    array = np.arange(24, dtype='<f4').reshape(2, 3, 4)
    stored, dtype = array.tobytes(), array.dtype.__reduce__()

    class Buffered:
        def __reduce__(self):
            return _frombuffer, (stored, array.dtype, (2, 3, 4), 'K', (1, 0, 2))

    assert dtype[0] is np.dtype
    content = pickle.dumps(Buffered(), 2).replace(
        f'c{__name__}\n_frombuffer'.encode(), f'cnumpy.{core}.numeric\n_frombuffer'.encode()
    )
    assert_equal(plain_pickle.loads(content), array.transpose(1, 0, 2))


def _frombuffer(*values):
    raise AssertionError('a name to be replaced')


def test_an_array_that_python_2_wrote_comes_back():
    raw = np.array([1.5, -2.0]).tobytes()
    content = (
        b'\x80\x02}U\x04corecnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R'
        b'(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff'
        b'J\xff\xff\xff\xffK\x00tb\x89U\x10' + raw + b'tbs.'
    )
    assert_equal(plain_pickle.loads(content), dict(core=np.array([1.5, -2.0])))


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize(
    'function', [os.system, builtins.eval, getattr, subprocess.run, np.load, np.frombuffer, type, object]
)
def test_what_runs_code_is_refused_by_its_name(protocol, function):
    with pytest.raises(DataError, match=f'{function.__name__}'):
        plain_pickle.loads(pickle.dumps([function], protocol))


class Typed:
    """Pickles as a type of objects whose state claims that there are none in it."""

    def __reduce__(self):
        return np.dtype, ('O8', False, True), (3, '|', None, None, None, -1, -1, 0)


class Pointing:
    """Pickles as an array of an object at an address of the writer's choice."""

    def __reduce__(self):
        rebuild = np.core.multiarray._reconstruct
        return rebuild, (np.ndarray, (0,), b'b'), (1, (1,), Typed(), False, b'\x41' * 8)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_raw_bytes_never_become_objects(protocol):
    with pytest.raises(DataError, match='an array of objects without its objects'):
        plain_pickle.loads(pickle.dumps(Pointing(), protocol))


@pytest.mark.parametrize(
    'content',
    [
        *(b'\x80\x02]r\xff\xff\xff\x07.', b'\x80\x02]r\x00\x01\x00\x00.', b'(lp99999999\n.'),
        b'\x80\x02X\x02\x00\x00\x00r.r\x00\x00\x00\x01.',
        *(b'\x80\x02]r\xff\x00\x00\x00.' + bytes(200), b'(lp9\x009\n.', b'(lp' + b'9' * 5000 + b'\n.'),
        b'(lp99\n.',
    ],
)
def test_numbers_of_objects_that_would_take_all_memory_are_refused(content):
    with pytest.raises(DataError, match='numbers an object higher than there are bytes'):
        plain_pickle.loads(content)


def test_a_pickle_that_ends_in_the_number_of_an_object_is_said_to_be_cut_off():
    with pytest.raises(pickle.UnpicklingError, match='truncated'):
        plain_pickle.loads(b'\x80\x02]r\x00\x01')


@pytest.mark.parametrize('size', [9, 255, 256, 0x1234, 0x12FFFF, 0x1000000, 2**32 - 1, 2**40])
def test_numbers_of_objects_are_allowed_up_to_the_number_of_bytes(size):
    allowed = re.compile(plain_pickle._up_to(size), re.DOTALL)
    steps = [step for power in range(5) for step in (256**power - 1, 256**power)]
    for number in {abs(size + sign * step) for step in steps for sign in (-1, 1)} | {2**32 - 1}:
        if number < 2**32:
            assert bool(allowed.fullmatch(number.to_bytes(4, 'little'))) == (number <= size), number


def test_attributes_that_a_pickle_sets_do_not_stay():
    named = b'c_codecs\nencode\n'
    plain_pickle.loads(b'\x80\x02' + named + b'N}X\x08\x00\x00\x00__name__X\x01\x00\x00\x00xs\x86b.')
    assert plain_pickle._bytes.__name__ == '_bytes'
