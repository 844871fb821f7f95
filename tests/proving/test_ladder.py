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


@pytest.mark.parametrize(
    ('options', 'shape'),
    [
        pytest.param(
            ['--mean', '100', '110', '120', '--std', '50', '51', '52'],
            '1x3x128x160',
            marks=pytest.mark.matrix,  # in the suite: test_preprocessing.py
        ),
        pytest.param(['--batch-size', '2'], '2x3x128x160', marks=pytest.mark.matrix),
        (['--postprocess', 'decode', '--score-form', 'product'], '1x3x128x160'),
        pytest.param(['--simplify', '--show'], '1x3x128x160', marks=pytest.mark.matrix),
        pytest.param(
            ['--cfg-options', 'model.test_cfg.deploy_nms_pre=20'], '1x3x128x160', marks=pytest.mark.matrix
        ),
        pytest.param(
            ['--cfg-options', 'model.test_cfg.deploy_nms_pre=-1', '--skip-postprocess'],
            '1x3x128x160',
            marks=pytest.mark.matrix,
        ),
    ],
)
def test_options_of_the_command_line_reach_a_file_that_is_proven_later(tmp_path, capsys, options, shape):
    from mmdeploy_ext.cli import export_app

    target = str(tmp_path / 'm.onnx')
    command = [
        CONFIG,
        CHECKPOINT,
        '--output-file',
        target,
        '--shape',
        '128',
        '160',
        '--input-img',
        str(PICTURE),
    ]
    if '--show' in options:  # the others are proven later alone
        command += ['--test-img', str(PICTURE.parent), '--verify']
    command += options
    assert export_app.main(command) == 0, capsys.readouterr().out
    assert (tmp_path / 'm.onnx.png').is_file() == ('--show' in options)
    asked = options if '--mean' in options else []
    if '--cfg-options' in options:  # a file with settings that the config does not have has to be asked for
        asked = options[:2]
    with samples_alone():
        status = verify_app.main([CONFIG, CHECKPOINT, target, *asked, '--json', str(tmp_path / 'v.json')])
    assert status == 0
    verdict = read_json(tmp_path / 'v.json')
    assert cases_of(verdict)[0].input_shape == shape
    assert any('deploy_nms_pre' in note for note in verdict['notes']) == ('--cfg-options' in options)


def test_a_frozen_input_is_named_by_the_structure_check(deployment, files, images, tmp_path):
    verdict = check_files(deployment, faulty(files['full'], tmp_path, freeze('img_shape')), images)
    assert any('img_shape' in check.detail for check in checks_of(verdict) if not check.passed)


@pytest.mark.matrix
def test_a_proof_in_which_next_to_nothing_is_found_is_no_proof(deployment, files):
    black = [('black.png', np.zeros((240, 320, 3), np.uint8))]
    verdict, _ = prove(deployment, files['full'], black)
    assert matched_of(verdict) < 10
    assert all(case.passed for case in cases_of(verdict)) and not verdict.proven
    assert 'use images with objects that this model finds' in verdict.failures[0]


def test_a_file_of_another_checkpoint_is_not_proven(deployment, files):
    import copy

    other = dataclasses.replace(deployment, checkpoint_sha256='0' * 64, model=copy.deepcopy(deployment.model))
    other.model.bbox_head.atss_cls.bias.data += 1e-4
    verdict = check_files(other, files['full'], [('picture', read_image(PICTURE))])
    assert not graphs_of(verdict)[0].passed and 'atss_cls.bias' in graphs_of(verdict)[0].text
    failed = [check.name for check in checks_of(verdict) if not check.passed]
    assert failed == ['made from this checkpoint', 'weights of atss_toy.pth']


@pytest.mark.parametrize(
    ('field', 'change', 'check', 'detail'),
    [
        ('preprocess', dict(to_rgb=False), 'preprocessing as in the config', 'to_rgb: the file says False'),
        pytest.param(
            'preprocess',
            dict(keep_ratio=False),
            'preprocessing as in the config',
            'keep_ratio',
            marks=pytest.mark.matrix,
        ),
        (
            'classes',
            None,
            'classes as in checkpoint, data set or config',
            "names: the file has 1, expected 6; label 0: the file says 'none', expected ",
        ),
        ('postprocess', dict(score_thr=0.9), 'post-processing as in the config', 'score_thr: the file says'),
    ],
)
def test_a_file_that_says_something_else_than_the_config_is_not_proven(
    field, change, check, detail, deployment, files, images, tmp_path
):
    model = onnx.load(files['full'])
    entry = next(one for one in model.metadata_props if one.key == f'mm2onnx.{field}')
    entry.value = json.dumps({**json.loads(entry.value), **change} if change else ['none'])
    told = str(tmp_path / 'told.onnx')
    onnx.save(model, told)
    (failed,) = [one for one in checks_of(check_files(deployment, told, images)) if not one.passed]
    assert failed.name == check and detail in failed.detail


@pytest.mark.matrix  # in the suite: a weight, by verify_app, and a contract, by `prove`
def test_verify_exits_1_for_a_file_whose_metadata_alone_differ(files, tmp_path):
    """The inputs give what PyTorch gives."""
    model = onnx.load(files['full'])
    next(one for one in model.metadata_props if one.key == 'mm2onnx.classes').value = json.dumps(['none'])
    onnx.save(model, tmp_path / 'told.onnx')
    command = [CONFIG, CHECKPOINT, str(tmp_path / 'told.onnx'), '--json', str(tmp_path / 'v.json')]
    assert verify_app.main(command) == 1
    failed = [one.name for one in checks_of(read_json(tmp_path / 'v.json')) if not one.passed]
    assert failed == ['classes as in checkpoint, data set or config']


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


@pytest.mark.matrix
def test_another_mean_than_that_of_the_config_is_said_where_it_was_asked_for(files, tmp_path):
    model = onnx.load(files['raw'])
    entry = next(one for one in model.metadata_props if one.key == 'mm2onnx.preprocess')
    entry.value = json.dumps({**json.loads(entry.value), 'mean': [1.0, 2.0, 3.0]})
    onnx.save(model, tmp_path / 'told.onnx')
    command = [CONFIG, CHECKPOINT, str(tmp_path / 'told.onnx'), '--json', str(tmp_path / 'v.json')]
    verify_app.main([*command, '--mean', '1', '2', '3'])
    notes = read_json(tmp_path / 'v.json')['notes']
    said = 'normalised with mean [1.0, 2.0, 3.0] (--mean), not with that of the config'
    assert any(said in note for note in notes)


def register():
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401


@pytest.mark.matrix
def test_verify_exits_0_for_a_proven_file_and_writes_json_and_a_page(files, tmp_path, capsys):
    status = verify_app.main(
        [
            CONFIG,
            CHECKPOINT,
            files['decode'],
            '--images',
            str(PICTURE),
            '--report',
            str(tmp_path / 'report'),
            '--json',
            str(tmp_path / 'v.json'),
        ],
    )
    assert status == 0
    assert 'PROVEN' in capsys.readouterr().out
    assert read_json(tmp_path / 'v.json')['verdict'] == 'proven'
    assert (tmp_path / 'report/report.html').stat().st_size > 10_000


def test_verify_exits_1_for_a_file_with_a_changed_weight(files, tmp_path, capsys):
    broken = faulty(files['raw'], tmp_path, scale_one_weight)
    with samples_alone():
        status = verify_app.main([CONFIG, CHECKPOINT, broken, '--json', str(tmp_path / 'v.json')])
    assert status == 1
    assert 'NOT PROVEN' in capsys.readouterr().out
    assert read_json(tmp_path / 'v.json')['verdict'] == 'not proven'


def test_an_export_without_verify_says_not_proven_and_how_to_prove_it(tmp_path, capsys):
    from mmdeploy_ext.cli import export_app

    target = str(tmp_path / 'm.onnx')
    assert export_app.main([CONFIG, CHECKPOINT, '--output-file', target]) == 0
    out = capsys.readouterr().out
    assert 'NOT PROVEN' in out
    assert f'tools/deployment/verify.py {CONFIG} {CHECKPOINT} {target}' in out
