"""The proof finds out what is wrong with a file, and passes what is right."""

import functools
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from marking import in_suite
from mmdeploy_ext.cli import verify_app
from mmdeploy_ext.core.files import read_json
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.ladder import prove
from proofs import check_files, samples_alone
from toy_atss import CHECKPOINT, CONFIG, PICTURE, export_toy, load_toy
from verdicts import cases_of, checks_of, graphs_of, matched_of

FORMS = ('full', 'decode', 'raw')


@pytest.fixture(scope='module')
def deployment():
    return load_toy()


@pytest.fixture(scope='module')
def files(deployment, tmp_path_factory):
    """Return form -> its file, exported once."""
    folder = tmp_path_factory.mktemp('ladder')
    return functools.cache(lambda form: export_toy(deployment, folder / f'{form}.onnx', form=form))


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


@pytest.mark.parametrize('form', in_suite(FORMS, 'full'))
def test_an_honest_export_is_proven_at_other_sizes_and_batch_3(deployment, files, images, form):
    verdict, pictures = prove(deployment, files(form), images)
    assert verdict.proven, verdict.to_json()
    assert sum(row.reference for case in cases_of(verdict) for row in case.detections) >= 50
    shapes = {case.input_shape for case in cases_of(verdict)}
    assert len(shapes) >= 3
    assert any(shape.startswith('3x') for shape in shapes)
    assert pictures


def test_a_weight_fault_is_named_by_the_structure_check(deployment, files, images, tmp_path):
    verdict = check_files(deployment, faulty(files('raw'), tmp_path, scale_one_weight), images)
    assert not [check for check in checks_of(verdict) if not check.passed]
    (change,) = graphs_of(verdict)[0].differences
    assert 'atss_cls.weight' in change and 'and 4 more' in change
    assert graphs_of(verdict)[0].text.startswith('5 nodes differ from a fresh export') and not verdict.passed


@pytest.mark.matrix
def test_a_proof_in_which_next_to_nothing_is_found_is_no_proof(deployment, files):
    black = [('black.png', np.zeros((240, 320, 3), np.uint8))]
    verdict, _ = prove(deployment, files('full'), black)
    assert matched_of(verdict) < 10
    assert all(case.passed for case in cases_of(verdict)) and not verdict.proven
    assert 'use images with objects that this model finds' in verdict.failures[0]


def loosened(tensors):
    for tensor in tensors:
        tensor['groups'] = [dict(name='', columns=None, unit='', rtol=0.5, atol=0.0)]


def as_unused(tensors):
    for tensor in tensors:
        tensor['unused'] = True


@pytest.mark.parametrize(
    ('side', 'change', 'detail'),
    [
        ('outputs', loosened, 'bbox_pred_0: groups: the file says'),
        ('inputs', as_unused, 'input: unused: the file says True, the family False'),
    ],
)
def test_a_file_has_the_contract_of_its_family_in_every_word(
    deployment, files, images, tmp_path, side, change, detail
):
    model = onnx.load(files('raw'))
    entry = next(one for one in model.metadata_props if one.key == 'mm2onnx.spec')
    spec = json.loads(entry.value)
    change([one for one in spec[side] if one['name'] in ('bbox_pred_0', 'input')])
    entry.value = json.dumps(spec)
    onnx.save(model, tmp_path / 'told.onnx')
    verdict = check_files(deployment, str(tmp_path / 'told.onnx'), images)
    (failed,) = [one for one in checks_of(verdict) if not one.passed]
    assert failed.name == 'contract as the family states it' and detail in failed.detail


@pytest.mark.matrix
def test_verify_exits_1_for_a_file_with_a_changed_weight(files, tmp_path, capsys):
    broken = faulty(files('raw'), tmp_path, scale_one_weight)
    with samples_alone():
        status = verify_app.main([CONFIG, CHECKPOINT, broken, '--json', str(tmp_path / 'v.json')])
    assert status == 1
    assert 'NOT PROVEN' in capsys.readouterr().out
    assert read_json(tmp_path / 'v.json')['verdict'] == 'not proven'
