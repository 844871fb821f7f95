"""What a file says about itself survives the file, and a file without it is refused by name."""

import collections
import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mmdeploy_ext.base.errors import LoadError, ModelFileError
from mmdeploy_ext.base.typed_json import JsonDataclass, Mismatch
from mmdeploy_ext.families.base import load_families
from mmdeploy_ext.runtime.box_coders import Delta, Scaled
from mmdeploy_ext.runtime.dense_facts import DenseFacts, Head
from mmdeploy_ext.spec.metadata import GRAPH_RULES, PREFIX, Metadata, check_graph, read_metadata
from mmdeploy_ext.spec.preparation import PreprocessRule
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, TensorSpec

NAMES = Path(__file__).resolve().parents[1] / 'goldens/metadata_names.json'
FACTS = DenseFacts(
    **dict(score_thr=0.05, nms_pre=100, iou_threshold=0.5, max_per_img=10, clip_border=True),
    strides=[16],
    base_anchors=[[[-16, -16, 16, 16]]],
    coder=Delta(means=[0, 0, 0, 0], stds=[1, 1, 1, 1]),
    head=Head([('cls_score', 3), ('bbox_pred', 4)]),
    num_classes=3,
)
METADATA = Metadata(
    family='dense',
    form='raw',
    spec=GraphSpec(
        'dense/raw',
        (TensorSpec('x', 'float32', ('B', 4)),),
        (TensorSpec('y', 'float32', ('B', 4), groups=(ColumnGroup('first', (0, 1)),)),),
        (('y', 'x'),),
    ),
    preprocess=PreprocessRule((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), False, (1333, 800), size=(608, 800)),
    classes=('人', 'car "x"', ''),
    postprocess=FACTS,
    options=dict(opset=17, exporter='torchscript', dynamic=True),
    config='atss.py',
    config_sha256='c' * 64,
    checkpoint_sha256='d' * 64,
    versions=dict(torch='2.13.0'),
)


@pytest.fixture
def model():
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ['B', 4]) for name in 'xy']
    graph = helper.make_graph([helper.make_node('Relu', ['x'], ['y'])], 'g', value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)


def write(model, path, props):
    onnx.helper.set_model_props(model, props)
    path.write_bytes(model.SerializeToString())
    return str(path)


def test_survives_the_file_through_onnx_and_through_onnxruntime(model, tmp_path):
    path = write(model, tmp_path / 'm.onnx', METADATA.to_props())
    assert read_metadata(path) == METADATA
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert Metadata.from_props(session.get_modelmeta().custom_metadata_map) == METADATA
    assert session.run(None, {'x': np.ones((1, 4), np.float32)})[0].sum() == 4


def test_a_file_of_another_exporter_is_refused_with_the_command_that_proves_it(model, tmp_path):
    with pytest.raises(ModelFileError, match='prove-module'):
        read_metadata(write(model, tmp_path / 'm.onnx', {}))


@pytest.mark.parametrize('rules', [GRAPH_RULES - 1, GRAPH_RULES + 1])
def test_a_file_of_other_graph_rules_is_refused_with_what_to_do(model, tmp_path, rules):
    props = dict(METADATA.to_props(), **{f'{PREFIX}rules': str(rules), f'{PREFIX}options': '{}'})
    said = rf'm\.onnx: its mm2onnx\.rules are {rules}, expected {GRAPH_RULES}: .*; export it again'
    with pytest.raises(ModelFileError, match=said):
        read_metadata(write(model, tmp_path / 'm.onnx', props))


@pytest.mark.parametrize(
    ('entry', 'change', 'key'),
    [
        ('preprocess', dict(std=[1.0, 0, 1.0]), 'std'),
        ('preprocess', dict(std=[1e30, 1.0, 1.0]), 'std'),
        ('preprocess', dict(size=[100_000, 100_000]), 'size'),
        ('preprocess', dict(size=[-1, -1]), 'size'),
        ('preprocess', dict(size_divisor=1_000_000_000), 'size_divisor'),
        ('preprocess', dict(img_scale=[0, 0]), 'img_scale'),
        ('preprocess', dict(img_scale=[100_000, 100_000]), 'img_scale'),
        ('preprocess', dict(pad_more=1_000_000), 'pad_more'),
        ('spec', dict(state=[['y']]), 'state'),
        ('versions', dict(onnx=1), 'onnx'),
    ],
)
def test_a_wrong_value_is_refused_by_its_entry_and_key(entry, change, key):
    props = METADATA.to_props()
    content = json.loads(props[PREFIX + entry]) | change
    with pytest.raises(ModelFileError, match=rf'm\.onnx: .*mm2onnx\.{entry}: {key}'):
        Metadata.from_props({**props, PREFIX + entry: json.dumps(content)}, 'm.onnx')


COLUMNS = (('cls_score', 3), ('bbox_pred', 4))


@pytest.mark.parametrize(
    ('changes', 'key'),
    [
        (dict(outputs=(*COLUMNS, *COLUMNS)), 'head.outputs'),
        (dict(outputs=COLUMNS[:1]), 'head.outputs'),
        (dict(outputs=(('cls_score', 4), COLUMNS[1])), 'head.outputs'),
        (dict(scores='scores'), 'head.scores'),
        (dict(visible='shape'), 'head.visible'),
        (dict(visible='bbox_pred'), 'head.visible'),
        (dict(conf_thr=0.1), 'head.conf_thr'),
        (dict(factor='bbox_pred'), 'head.factor_from'),
        (dict(factor='bbox_pred', factor_from=('bbox_pred', 4)), 'head.factor_from'),
        (dict(factor='bbox_pred', factor_from=('bbox_pred', '0')), 'head.factor_from'),
        (dict(strides=[16, 32]), 'strides'),
        (dict(base_anchors=[[[0, 0]]]), 'base_anchors'),
        (dict(base_anchors=[[[0, 0], [-16, -16, 16, 16]]]), 'base_anchors'),
        (dict(coder=Scaled(strides=[16, 32], around_points=False)), 'coder.strides'),
    ],
)
def test_facts_of_a_head_that_do_not_fit_together_are_refused_by_their_key(changes, key):
    of_head = {name: changes.pop(name) for name in [*changes] if hasattr(FACTS.head, name)}
    with pytest.raises(Mismatch, match=rf'^{key}'):
        dataclasses.replace(FACTS, head=dataclasses.replace(FACTS.head, **of_head), **changes)


def test_a_graph_that_a_simplifier_took_optional_inputs_from_is_told_so():
    """Its metadata is right: onnxslim takes an input with a default for a constant."""
    image, size = TensorSpec('input', 'float32', ('B', 3)), TensorSpec('size', 'float32', ('B',), default=0.0)
    spec = GraphSpec('toy', (image, size), (TensorSpec('y', 'float32', ('B', 3)),))
    ends = dict(input=('float32', ['B', 3])), dict(y=('float32', ['B', 3]))
    with pytest.raises(LoadError, match=r'^m\.onnx'):
        check_graph(spec, *ends, 'm.onnx')
    with pytest.raises(ModelFileError, match=r'\(mm2onnx\.spec'):
        check_graph(spec, dict(size=('float32', ['B'])), ends[1], 'm.onnx')


@pytest.mark.parametrize(
    ('side', 'dtype', 'axes', 'fits'),
    [
        ('x', 'float32', ['N', 4], True), ('x', 'float16', ['N', 4], False),
        ('x', 'float32', ['N', 5], False), ('x', 'float32', ['N', 'M'], False),
        ('y', 'float32', ['N', 'M'], True), ('y', 'int64', ['N', 4], False),
    ],
)  # fmt: skip
def test_a_graph_with_other_dtypes_or_sizes_than_its_spec_is_refused(side, dtype, axes, fits):
    ends = dict(x=('float32', ['B', 4]), y=('float32', ['B', 4])) | {side: (dtype, axes)}
    with contextlib.nullcontext() if fits else pytest.raises(ModelFileError, match=rf"'{side}' is"):
        check_graph(METADATA.spec, dict(x=ends['x']), dict(y=ends['y']), 'm.onnx')


def classes_in_files():
    """Yield the dataclasses that are in files: rules, facts of families, specs."""
    waiting = [Metadata, JsonDataclass]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith(('mmdeploy_ext.', 'mm2onnx_driving.')):
            yield kind


def test_keys_of_rules_and_facts_are_those_of_files_that_exist():
    """The golden has class -> field -> the value of `type` and `kind`; add what is new, rename nothing."""
    pytest.importorskip('mm2onnx_driving')
    load_families()
    found = collections.defaultdict(list)
    for cls in classes_in_files():
        found[cls.__name__].append({field.name: field.default for field in dataclasses.fields(cls)})
    for name, fields in json.loads(NAMES.read_text()).items():
        kinds = {field: value for field, value in fields.items() if value}
        assert any(fields.keys() <= defaults.keys() and kinds.items() <= defaults.items()
                   for defaults in found[name]), name  # fmt: skip


def test_the_entries_of_a_file_have_the_names_of_files_that_exist():
    names = 'family form spec preprocess classes postprocess options config config_sha256 checkpoint_sha256'
    assert {PREFIX + name for name in names.split()} <= METADATA.to_props().keys()
