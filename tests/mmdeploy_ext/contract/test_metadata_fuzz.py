"""Whatever the metadata of a file say: refused in one line that names the key, or run."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import metadata_fuzz as fuzz
import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.core.errors import Mm2OnnxError
from mmdeploy_ext.exporting import model as deploy
from mmdeploy_ext.exporting.files import make_metadata
from mmdeploy_ext.runtime import run_images
from mmdeploy_ext.runtime.detect import runner_of

REPOSITORY = Path(__file__).resolve().parents[3]
DEMO = REPOSITORY / 'demo/atss_toy.onnx'
SEED = 16
STRIDES = (8, 16, 32, 64, 128)
SIZES = dict(cls_score=6, bbox_pred=4, centerness=1)


def said_right(said, key):
    """Return whether an error is one line that names the entry, or a value of it that does not fit."""
    others = dict(
        preprocess=['shape'], postprocess=['expected'], spec=['input'], form=['form'], family=['family']
    )
    words = [key, *others.get(key.removeprefix('mm2onnx.'), ())]
    return said.count('\n') == 1 and said.startswith('error: ') and any(word in said for word in words)


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp('picture') / 'small.png'
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(REPOSITORY / 'demo/toy.jpg')), (96, 64)))
    return path


def raw_model():
    """Return a network with the tensors of a `raw` ATSS, small enough to be opened hundreds of times."""
    nodes, weights, outputs = [], [], []
    for level, stride in enumerate(STRIDES):
        nodes.append(
            helper.make_node(
                'AveragePool',
                ['input'],
                [f'p{level}'],
                kernel_shape=[stride] * 2,
                strides=[stride] * 2,
                ceil_mode=1,
            )
        )
        for name, channels in SIZES.items():
            values = np.random.default_rng(level).normal(size=(channels, 3, 1, 1)).astype(np.float32)
            weights.append(onnx.numpy_helper.from_array(values, f'w_{name}_{level}'))
            nodes.append(helper.make_node('Conv', [f'p{level}', f'w_{name}_{level}'], [f'{name}_{level}']))
            shape = ['B', channels, f'h{level}', f'w{level}']
            outputs.append(helper.make_tensor_value_info(f'{name}_{level}', TensorProto.FLOAT, shape))
    image = helper.make_tensor_value_info('input', TensorProto.FLOAT, ['B', 3, 'H', 'W'])
    graph = helper.make_graph(nodes, 'raw', [image], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)


def raw_props(model):
    """Return the metadata of the demo file, for the raw form."""
    props = fuzz.props_of(onnx.load(DEMO))
    spec = json.loads(props['mm2onnx.spec'])
    image = spec['inputs'][0]
    outputs = [
        dict(
            image,
            name=value.name,
            axes=[axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
        )
        for value in model.graph.output
    ]
    changed = {'spec': dict(spec, name='dense/raw', inputs=[image], outputs=outputs), 'form': 'raw'}
    changed['edits'] = ['simplify']
    return props | {f'mm2onnx.{key}': json.dumps(value) for key, value in changed.items()}


def run(path, picture, folder, capsys, tool='no_topk_nms'):
    """Run a file on a picture; return the exit status and what was said on stderr."""
    words = [str(path), str(picture), '--out', str(folder / 'found.png'), '--threads', '1']
    status = run_images.main(words, tool)
    return status, capsys.readouterr().err


@pytest.mark.matrix
def test_no_metadata_of_a_runner_are_a_traceback(picture, tmp_path, capsys):
    model, count = raw_model(), 400
    props = raw_props(model)
    assert run(fuzz.write(model, props, tmp_path / 'm.onnx'), picture, tmp_path, capsys) == (0, '')
    refused = 0
    for key, what, changed in fuzz.variants(props, count, SEED):
        path = fuzz.write(model, changed, tmp_path / 'm.onnx')
        status, said = run(path, picture, tmp_path, capsys)  # any other error than ours comes through
        assert (status == 0) == (said == ''), (key, what, said)
        assert status == 0 or said_right(said, key), (key, what, said)
        refused += status != 0
    assert refused > 0.75 * count


@pytest.mark.parametrize(
    ('entry', 'path', 'value', 'said'),
    [
        ('preprocess', ('std', 1), 0, 'mm2onnx.preprocess: std[1] is 0, expected a positive number'),
        (
            'preprocess',
            ('std', 0),
            float('nan'),
            'mm2onnx.preprocess: std[0] is nan, expected a positive number',
        ),
        ('preprocess', ('std', 2), -57.0, 'mm2onnx.preprocess: std[2] is -57.0, expected a positive number'),
        ('preprocess', ('mean',), [1.0], 'mm2onnx.preprocess: mean is [1.0], expected a list of 3 values'),
        (
            'preprocess',
            ('resize',),
            'magic',
            "mm2onnx.preprocess: resize is 'magic', expected 'cv2' or 'pillow'",
        ),
        ('preprocess', ('more',), 1, 'mm2onnx.preprocess: more is not known'),
        ('postprocess', ('iou_threshold',), 2, 'mm2onnx.postprocess: iou_threshold is 2, expected'),
        ('postprocess', ('strides',), [8], 'mm2onnx.postprocess: strides has 1 entries, base_anchors has 5'),
        ('postprocess', ('num_classes',), 7, 'mm2onnx.postprocess: head.outputs has scores of 6 classes'),
        ('postprocess', ('head', 'scores'), 'score', "mm2onnx.postprocess: head.scores is 'score', expected"),
        ('postprocess', ('head', 'visible'), 'bbox_pred', "head.visible is 'bbox_pred', expected an output"),
        (
            'postprocess',
            ('head', 'factor_from'),
            ['centerness', 1],
            'mm2onnx.postprocess: head.factor_from is',
        ),
        ('postprocess', ('head', 'factor_from'), [], 'mm2onnx.postprocess: head.factor_from is empty'),
        ('postprocess', ('head', 'outputs', 2, 0), 'bbox_pred', 'head.outputs has a name twice'),
        ('postprocess', ('head', 'outputs', 1, 1), 3, "head.outputs has no 'bbox_pred' of 4 columns"),
        ('postprocess', ('head',), {}, "mm2onnx.postprocess: head has no 'outputs'"),
        ('postprocess', ('coder', 'type'), 'deltas', "mm2onnx.postprocess: coder.type is 'deltas', expected"),
        ('postprocess', ('coder', 'type'), 'integral', "mm2onnx.postprocess: coder.means is not known"),
        (
            'postprocess',
            ('base_anchors', 1, 0),
            [0, 0, 1],
            'base_anchors has entries of 3, 4 numbers, expected 4',
        ),
        ('spec', ('inputs', 0, 'name'), 'picture', 'mm2onnx.spec: inputs are picture, the graph has input'),
        (
            'spec',
            ('inputs', 0, 'dtype'),
            'float16',
            "inputs says 'input' is float16 Bx3xHxW, the graph has float32",
        ),
        (
            'spec',
            ('inputs', 0, 'axes', 2),
            10**9,
            "mm2onnx.spec: inputs says 'input' is float32 Bx3x1000000000xW",
        ),
        (
            'spec',
            ('outputs', 0, 'dtype'),
            'object',
            "mm2onnx.spec: outputs[0].dtype is 'object', expected 'bool' or",
        ),
        (
            'spec',
            ('state',),
            [['a', 'b']],
            "mm2onnx.spec: state[0] is ['a', 'b'], expected an output and an input",
        ),
        ('options', ('opset',), '17', "mm2onnx.options: opset is '17', expected a whole number"),
        ('options', ('cfg_options',), 3, 'mm2onnx.options: cfg_options is 3, expected a dict'),
        ('config_sha256', (), 'abc', "mm2onnx.config_sha256: is 'abc', expected 64 hexadecimal digits"),
        ('versions', ('onnx',), 1, 'mm2onnx.versions: onnx is 1, expected a text'),
        ('classes', (), 'car', "mm2onnx.classes: is 'car', expected a list"),
        ('rules', (), 0, 'mm2onnx.rules: is 0, expected a whole number of at least 1'),
        ('edits', (), [dict(command='x')], "mm2onnx.edits: [0] is {'command': 'x'}, expected"),
        ('form', (), 'full', "the graph of mm2onnx.form 'full' has no 'dets'"),
    ],
)
def test_an_error_names_the_file_the_key_the_value_and_what_is_right(
    entry, path, value, said, picture, tmp_path, capsys
):
    model = raw_model()
    props = raw_props(model)
    key = f'mm2onnx.{entry}'
    changed = json.loads(props[key])
    changed = {**changed, path[0]: value} if len(path) == 1 else fuzz.replaced(changed, path, value)
    fuzz.write(model, {**props, key: json.dumps(changed)}, tmp_path / 'm.onnx')
    tool = runner_of('dense', value if entry == 'form' else 'raw')
    status, found = run(tmp_path / 'm.onnx', picture, tmp_path, capsys, tool)
    assert status != 0 and found.startswith('error: ') and 'm.onnx: ' in found and said in found, found


def test_classes_that_the_graph_does_not_have_are_refused(picture, tmp_path, capsys):
    model = raw_model()
    props = raw_props(model)
    facts = json.loads(props['mm2onnx.postprocess']) | dict(num_classes=7)
    facts['head']['outputs'][0] = ['cls_score', 7]
    changed = {'mm2onnx.postprocess': json.dumps(facts), 'mm2onnx.classes': json.dumps(['x'] * 7)}
    fuzz.write(model, props | changed, tmp_path / 'm.onnx')
    status, said = run(tmp_path / 'm.onnx', picture, tmp_path, capsys)
    assert status == 1 and 'has 6 channels, expected 7: 7 classes (num_classes)' in said


def image_props(name, **options):
    """Return the metadata that an export of a toy would have."""
    config, checkpoint = REPOSITORY / f'configs/demo/{name}.py', REPOSITORY / f'demo/checkpoints/{name}.pth'
    deployment = deploy.load(str(config), str(checkpoint))
    resolved = deploy.resolve(deployment.family.choose(**options), deployment.model, deployment.rule)
    return make_metadata(deployment, resolved).to_props()


@pytest.mark.parametrize('name', ['solov2_toy', 'rtdetr_toy'])
def test_no_metadata_of_a_family_are_a_traceback(name):
    props = image_props(name, form='raw')
    Metadata.from_props(props, 'm.onnx')
    for key, what, changed in fuzz.variants(props, 400, SEED):
        try:
            Metadata.from_props(changed, 'm.onnx')
        except Mm2OnnxError as error:
            assert str(error).startswith('m.onnx: ') and 'mm2onnx.' in str(error), (key, what, error)


def test_every_option_of_an_export_has_a_check():
    from mmdeploy_ext.contract import options
    from mmdeploy_ext.contract.metadata_schema import checks_of_options
    from mmdeploy_ext.contract.options import schemas
    from mmdeploy_ext.families.base import BACKBONE, FAMILIES, load_families

    load_families()
    for family in FAMILIES.values():
        known = schemas(options.SPARSE) if family.product == BACKBONE else checks_of_options()
        assert {option.name for option in family.options} <= set(known), family.name


@pytest.mark.matrix
@pytest.mark.parametrize('form', ['full', 'raw'])
@pytest.mark.parametrize(('name', 'family'), [('atss', 'dense'), ('solov2', 'solo'), ('rtdetr', 'rtdetr')])
def test_no_metadata_of_a_real_file_are_a_traceback(name, family, form, picture, tmp_path, capsys):
    from mmdeploy_ext.cli import export_app

    config, weights = (
        REPOSITORY / part for part in (f'configs/demo/{name}_toy.py', f'demo/checkpoints/{name}_toy.pth')
    )
    words = [str(config), str(weights), '--postprocess', form, '--shape', '128', '160']
    assert export_app.main([*words, '--output-file', str(tmp_path / 'right.onnx')]) == 0
    model = onnx.load(tmp_path / 'right.onnx')
    shutil.copy(picture, tmp_path / 'small.png')
    capsys.readouterr()
    for key, what, changed in fuzz.variants(fuzz.props_of(model), 260, SEED):
        path = fuzz.write(model, changed, tmp_path / 'm.onnx')
        status, said = run(path, picture, tmp_path, capsys, runner_of(family, form))
        assert status == 0 or said_right(said, key), (key, what, said)
