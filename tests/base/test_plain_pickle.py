"""Plain pickles of every protocol come back as they were; what might run code is refused."""

import builtins
import collections
import os
import pickle

import numpy as np
import pytest

from mmdeploy_ext.base import plain_pickle
from mmdeploy_ext.base.errors import DataError

PROTOCOLS = range(6)
INFO = dict(
    token='é', timestamp=1533151603547590, velocity=float('inf'), flags=(True, None), raw=b'\xff',
    lidar=bytearray(b'x'),
    classes={'car', 'bus'}, frozen=frozenset({1}), ordered=collections.OrderedDict(a=1, b=[2]), number=1 + 2j,
    boxes=np.arange(14, dtype='f4').reshape(2, 7), transposed=np.arange(6).reshape(2, 3).T,
    empty=np.zeros((0, 3)),
    score=np.float32(0.5), names=np.array(['car', '']), valid=np.array([True, False]),
    objects=np.array([None, [1]], object),
)  # fmt: skip


def assert_infos(read):
    assert read.keys() == INFO.keys()
    for key, value in INFO.items():
        assert type(read[key]) is type(value), key
        if isinstance(value, np.ndarray):
            assert read[key].dtype == value.dtype and read[key].tolist() == value.tolist()
        else:
            assert read[key] == value


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_infos_of_every_protocol_come_back(protocol):
    shared, twice = plain_pickle.loads(pickle.dumps([INFO, INFO], protocol))
    assert shared is twice
    assert_infos(shared)
    shared['boxes'][0] = 0  # it can be written to


def test_infos_of_numpy_2_come_back():
    content = pickle.dumps(INFO, 2).replace(b'numpy.core.', b'numpy._core.')
    assert b'numpy._core.multiarray' in content
    assert_infos(plain_pickle.loads(content))


@pytest.mark.parametrize('function', [os.system, builtins.eval, getattr])
def test_what_runs_code_is_refused_by_its_name(function):
    with pytest.raises(DataError, match=f'{function.__name__}, which is not read: it could run code'):
        plain_pickle.loads(pickle.dumps([function]))
