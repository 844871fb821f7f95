"""The proof finds out what is wrong with a file, and passes what is right."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from marking import in_suite
from mmdeploy_ext.cli import verify_app
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.files import read_json
from mmdeploy_ext.graph.signature import differences
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.proving.provenance import override_notes
from proofs import check_files, prove_samples, samples_alone
from toy_atss import CHECKPOINT, CONFIG, PICTURE, export_toy, load_toy
from verdicts import cases_of, checks_of, graphs_of, matched_of

FORMS = ('full', 'decode', 'raw')


@pytest.fixture(scope='module')
def deployment():
    return load_toy()


@pytest.fixture(scope='module')
def files(deployment, tmp_path_factory):
    folder = tmp_path_factory.mktemp('ladder')
    return {form: export_toy(deployment, folder / f'{form}.onnx', form=form) for form in FORMS}


@pytest.fixture
def images():
    return [('toy.jpg', read_image(PICTURE))]


def faulty(path, folder, change):
    model = onnx.load(path)
    change(model.graph)
    target = str(folder / 'faulty.onnx')
    onnx.save(model, target)
    return target


def scale_one_weight(graph):
    weight = next(value for value in graph.initializer if value.name.endswith('bbox_head.atss_cls.weight'))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.05), weight.name))


def swap_outputs(first, second):
    """Exchange which nodes give two outputs; names, shapes and order stay."""

    def change(graph):
        names = {first: second, second: first}
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]

    return change


def freeze(name):
    """Replace an input by what a careless trace leaves of it: a constant."""

    def change(graph):
        value = next(value for value in graph.input if value.name == name)
        shape = [
            dim.dim_value or size
            for dim, size in zip(value.type.tensor_type.shape.dim, (1, 3, 256, 320), strict=False)
        ]
        constant = np.full(shape, 0.3, np.float32) if name == 'input' else np.full(shape, 64, np.float32)
        graph.initializer.append(numpy_helper.from_array(constant, 'frozen'))
        for node in graph.node:
            if node.op_type != 'Shape':
                node.input[:] = ['frozen' if given == name else given for given in node.input]

    return change


def first_for_all(name):
    """Let every image of a batch have the value of the first one."""

    def change(graph):
        rows = numpy_helper.from_array(np.zeros(1, np.int64), 'rows')
        first = onnx.helper.make_node('Gather', [name, 'rows'], ['first'], axis=0)
        for node in graph.node:
            node.input[:] = ['first' if given == name else given for given in node.input]
        graph.initializer.append(rows)
        graph.node.insert(0, first)

    return change


@pytest.mark.suite('full')
@pytest.mark.parametrize('form', in_suite(FORMS, 'full', 'raw'))
def test_an_honest_export_is_proven_at_other_sizes_and_batch_3(deployment, files, images, form):
    verdict, pictures = prove(deployment, files[form], images)
    assert verdict.proven, verdict.to_json()
    assert sum(row.reference for case in cases_of(verdict) for row in case.detections) >= 50
    shapes = {case.input_shape for case in cases_of(verdict)}
    assert len(shapes) >= 3
    assert any(shape.startswith('3x') for shape in shapes)
    assert pictures


@pytest.mark.parametrize(
    ('form', 'change', 'level'),
    [
        ('full', scale_one_weight, 3),
        pytest.param('decode', scale_one_weight, 2, marks=pytest.mark.matrix),
        pytest.param('raw', scale_one_weight, 2, marks=pytest.mark.matrix),
        ('raw', swap_outputs('centerness_0', 'centerness_1'), 2),
        pytest.param('raw', swap_outputs('cls_score_0', 'bbox_pred_0'), 2, marks=pytest.mark.matrix),
        pytest.param('decode', swap_outputs('scores', 'boxes'), 2, marks=pytest.mark.matrix),
        pytest.param('full', freeze('img_shape'), 3, marks=pytest.mark.matrix),
        pytest.param('full', freeze('scale_factor'), 3, marks=pytest.mark.matrix),
        pytest.param('full', freeze('input'), 3, marks=pytest.mark.matrix),
        pytest.param('raw', freeze('input'), 2, marks=pytest.mark.matrix),
    ],
)
def test_a_planted_fault_is_found_by_structure_and_by_numbers(
    deployment, files, images, tmp_path, form, change, level
):
    try:
        verdict, _ = prove_samples(deployment, faulty(files[form], tmp_path, change), images)
    except ModelFileError:
        return  # the engine refuses it: found out as well
    assert not verdict.proven
    rows = [row for case in cases_of(verdict) for row in (case.tensors if level == 2 else case.detections)]
    assert any(not row.passed for row in rows), 'the numbers have to show it too'


@pytest.mark.parametrize('name', in_suite(['img_shape', 'scale_factor'], 'img_shape'))
def test_a_graph_that_gives_a_batch_the_sizes_of_its_first_image_is_not_proven(
    name, deployment, files, images, tmp_path
):
    path = faulty(files['full'], tmp_path, first_for_all(name))
    cases = cases_of(prove_samples(deployment, path, images)[0])
    assert {case.name for case in cases if not case.passed} == {'H > 2W, batch 3'}


def test_a_weight_fault_is_named_by_the_structure_check(deployment, files, images, tmp_path):
    verdict = check_files(deployment, faulty(files['full'], tmp_path, scale_one_weight), images)
    assert not [check for check in checks_of(verdict) if not check.passed]
    (change,) = graphs_of(verdict)[0].differences
    assert 'atss_cls.weight' in change and 'and 4 more' in change
    assert graphs_of(verdict)[0].text.startswith('5 nodes differ from a fresh export') and not verdict.passed


@pytest.mark.parametrize('step', in_suite([1, 9], 9))
def test_a_change_of_any_parameter_is_another_graph(files, step):
    """One constant at a time, from a single number to the largest kernel."""
    model = onnx.load(files['full'])
    right = onnx.load(files['full'])
    parameters = [value for value in model.graph.initializer if value.name.startswith('network/')]
    parameters = [value for value in parameters if value.data_type == onnx.TensorProto.FLOAT]
    assert len(parameters) > 60
    parameters.sort(key=lambda value: numpy_helper.to_array(value).size)
    assert numpy_helper.to_array(parameters[0]).size == 1
    for value in (*parameters[::step], parameters[-1]):
        array = numpy_helper.to_array(value)
        kept = value.SerializeToString()
        value.CopyFrom(numpy_helper.from_array((array * 1.05 + 1e-3).astype(array.dtype), value.name))
        assert differences(model, right), value.name
        value.ParseFromString(kept)
    assert not differences(model, right)


@pytest.mark.matrix
def test_a_proof_in_which_next_to_nothing_is_found_is_no_proof(deployment, files):
    black = [('black.png', np.zeros((240, 320, 3), np.uint8))]
    verdict, _ = prove(deployment, files['full'], black)
    assert matched_of(verdict) < 10
    assert all(case.passed for case in cases_of(verdict)) and not verdict.proven
    assert 'use images with objects that this model finds' in verdict.failures[0]


def loosened(tensors):
    for tensor in tensors:
        tensor['groups'] = [dict(name='', columns=None, unit='', rtol=0.5, atol=0.0)]


def not_compared(tensors):
    for tensor in tensors:
        tensor['compare'] = 'detections'


def worded(tensors):
    for tensor in tensors:
        tensor.update(meaning='pictures as they are', unit='pixel')


def as_unused(tensors):
    for tensor in tensors:
        tensor['unused'] = True


@pytest.mark.parametrize(
    ('form', 'side', 'change', 'detail'),
    [
        ('raw', 'outputs', loosened, 'bbox_pred_0: groups: the file says'),
        ('raw', 'outputs', not_compared, 'bbox_pred_0: compare: the file says detections, the family values'),
        ('full', 'inputs', as_unused, 'input: unused: the file says True, the family False'),
        ('full', 'inputs', worded, 'input: meaning: the file says pictures as they are, the family '),
        ('full', 'inputs', worded, 'unit: the file says pixel, the family '),
    ],
)
def test_a_file_has_the_contract_of_its_family_in_every_word(
    deployment, files, images, tmp_path, form, side, change, detail
):
    model = onnx.load(files[form])
    entry = next(one for one in model.metadata_props if one.key == 'mm2onnx.spec')
    spec = json.loads(entry.value)
    change([one for one in spec[side] if one['name'] in ('bbox_pred_0', 'input')])
    entry.value = json.dumps(spec)
    onnx.save(model, tmp_path / 'told.onnx')
    verdict = check_files(deployment, str(tmp_path / 'told.onnx'), images)
    (failed,) = [one for one in checks_of(verdict) if not one.passed]
    assert failed.name == 'contract as the family states it' and detail in failed.detail
    if change is loosened:  # a check that fails decides, whatever the inputs give
        assert not prove_samples(deployment, str(tmp_path / 'told.onnx'), images)[0].proven


def test_overrides_of_the_export_are_told_from_those_of_the_proof(deployment, files):
    metadata = read_metadata(files['full'])
    written = dataclasses.replace(metadata, options=dict(metadata.options, cfg_options={'a.b': 1}))
    same, other = (dataclasses.replace(deployment, cfg_options={'a.b': value}) for value in (1, 2))
    assert override_notes(deployment, metadata) == []
    assert override_notes(same, written) == [
        'the file was exported with --cfg-options a.b=1; PyTorch ran with a.b=1'
    ]
    assert override_notes(other, written) == [
        'the file was exported with --cfg-options a.b=1; PyTorch ran with a.b=2'
    ]


def test_verify_exits_1_for_a_file_with_a_changed_weight(files, tmp_path, capsys):
    broken = faulty(files['raw'], tmp_path, scale_one_weight)
    with samples_alone():
        status = verify_app.main([CONFIG, CHECKPOINT, broken, '--json', str(tmp_path / 'v.json')])
    assert status == 1
    assert 'NOT PROVEN' in capsys.readouterr().out
    assert read_json(tmp_path / 'v.json')['verdict'] == 'not proven'
