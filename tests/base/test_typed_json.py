"""Facts are written to JSON and read back by their annotations; what does not fit is refused by its key."""

import dataclasses
import gc
import json
import weakref
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.base.typed_json import DEEPEST, parse_json
from mmdeploy_ext.spec.facts import Bounds, Count, Facts, Mismatch, Stride, optional


@dataclasses.dataclass(frozen=True)
class Delta(Facts):
    means: tuple[float, float]
    clamp: float | None = optional()
    type: Literal['delta'] = 'delta'


@dataclasses.dataclass(frozen=True)
class Distance(Facts):
    type: Literal['distance'] = 'distance'


@dataclasses.dataclass(frozen=True)
class Example(Facts):
    count: Count
    strides: Annotated[tuple[Stride, ...], Bounds(1)]
    threshold: float | None
    coder: Delta | Distance
    scale: float | tuple[float, float]
    columns: Mapping[str, int]
    anything: Any = None
    agnostic: bool = False
    name: str = ''

    def check(self):
        if self.count < len(self.strides):
            raise Mismatch(f'count is {self.count}, expected one for each of {len(self.strides)} strides')


EXAMPLE = Example(3, [8, 16], 1, Delta([0, 1]), (1, 2), dict(boxes=4))


def test_what_is_written_is_read():
    assert Example.from_json(json.loads(json.dumps(EXAMPLE.to_json()))) == EXAMPLE


def test_an_optional_key_is_left_out_at_its_default():
    assert 'clamp' not in EXAMPLE.to_json()['coder']
    assert dataclasses.replace(EXAMPLE.coder, clamp=4).to_json()['clamp'] == 4.0


@pytest.mark.parametrize(
    ('key', 'value', 'place'),
    [
        ('count', 0, 'count'),
        ('strides', [8, 8.0], 'strides[1]'),
        ('threshold', '0.5', 'threshold'),
        ('coder', dict(type='unknown'), 'coder.type'),
        ('scale', [1, 'a'], 'scale[1]'),
        ('more', 1, 'more'),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(key, value, place):
    with pytest.raises(ModelFileError) as error:
        Example.from_json({**EXAMPLE.to_json(), key: value}, 'm.onnx')
    assert str(error.value).startswith('m.onnx: ') and f'{place} ' in str(error.value)


class Weights:
    pass


def test_reading_a_value_of_two_types_keeps_nothing_of_its_callers_alive():
    def read():
        model = Weights()
        dataclasses.replace(EXAMPLE, scale=(1, 2))
        return weakref.ref(model)

    gc.disable()
    try:
        assert read()() is None
    finally:
        gc.enable()


@pytest.mark.parametrize('key', EXAMPLE.to_json())
def test_a_missing_key_is_refused(key):
    content = EXAMPLE.to_json()
    del content[key]
    with pytest.raises(ModelFileError, match=key):
        Example.from_json(content)


def test_json_is_read_to_a_depth():
    assert parse_json('[' * DEEPEST + ']' * DEEPEST) and parse_json('{"a": ["text", 1, null]}')
    for depth in (DEEPEST + 1, 50_000):
        for begin, end in ('[]', ('{"a":', '}')):
            with pytest.raises(ValueError, match='deep'):
                parse_json(begin * depth + '1' + end * depth)
