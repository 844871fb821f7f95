"""Facts in the files of every family: what is written is read, what does not fit is refused by its key."""

import dataclasses
import json
import typing
from collections.abc import Mapping

import pytest

from mmdeploy_ext.contract.registry import registered
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.runtime.box_coders import Distance
from mmdeploy_ext.runtime.dense_facts import Head

CONSISTENT = dict(
    AnchorFacts=dict(ranges=[0.0] * 6, sizes=[1.0] * 3),
    DenseFacts=dict(
        coder=Distance().to_json(),
        base_anchors=[[[0.0, 0.0]]],
        head=Head(outputs=(('cls_score', 1), ('bbox_pred', 4))).to_json(),
    ),
    ImVoxelNetFacts=dict(ranges=[0.0] * 6, sizes=[1.0] * 3),
)
"""Class -> values of fields that go together."""
CLASSES = {registration.load_facts() for registration in registered().values() if registration.facts}


def fields_of(cls):
    """Return name of a field -> the field and its annotation."""
    annotations = typing.get_type_hints(cls, include_extras=True)
    return {field.name: (field, annotations[field.name]) for field in dataclasses.fields(cls)}


def content_of(cls):
    """Return the JSON form of facts of a class."""
    fields = fields_of(cls).items()
    content = {name: example(annotation) for name, (field, annotation) in fields if not field.metadata}
    return content | CONSISTENT.get(cls.__name__, {})


def example(annotation):
    """Return a JSON value that an annotation allows."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return content_of(annotation)
    if origin is typing.Annotated:
        value, bounds = example(arguments[0]), arguments[1]
        if isinstance(value, list):
            return value * max(1, int(bounds.minimum))
        return value if value in bounds else arguments[0](bounds.minimum)
    if origin is tuple:
        return [example(item) for item in arguments if item is not ...]
    if origin is typing.Literal:
        return arguments[0]
    if origin is Mapping:
        return {}
    if arguments:
        return example(arguments[0])
    return {bool: True, int: 1, float: 0.5, str: 'x'}.get(annotation)


def below(annotation):
    """Return a number below the bounds of an annotation, or None."""
    if typing.get_origin(annotation) is not typing.Annotated:
        return None
    kind, bounds = typing.get_args(annotation)
    return min(bounds.minimum, bounds.above or 0) - 1 if kind in (int, float) else None


@pytest.mark.parametrize('cls', sorted(CLASSES, key=lambda cls: cls.__name__))
def test_facts_are_read_and_what_does_not_fit_is_refused_by_its_key(cls):
    content = content_of(cls)
    facts = cls.from_json(content, 'm.onnx')
    assert cls.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    for name, (field, annotation) in fields_of(cls).items():
        wrong = [{**content, name: value} for value in ({'x': 1}, below(annotation)) if value is not None]
        if typing.get_origin(annotation) is Mapping:
            wrong = [{**content, name: 1}]
        if not field.metadata:
            wrong.append({key: value for key, value in content.items() if key != name})
        for damaged in wrong:
            with pytest.raises(ModelFileError, match=rf'm\.onnx: .*{name}'):
                cls.from_json(damaged, 'm.onnx')
    with pytest.raises(ModelFileError, match='unknown'):
        cls.from_json({**content, 'unknown': 1}, 'm.onnx')
