"""The proof finds out what is wrong with a file, and passes what is right."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from marking import in_suite
from mmdeploy_ext.base.files import read_json
from mmdeploy_ext.cli import verify_app
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from proofs import check_files, prove, samples_alone
from toy_atss import CHECKPOINT, CONFIG, PICTURE, load_toy, toy_file
from verdicts import cases_of, checks_of, graphs_of, matched_of

IMAGES = [('toy.jpg', read_image(PICTURE))]


@pytest.fixture(scope='module')
def detector():
    return load_toy()


@pytest.mark.parametrize('form', in_suite(['full', 'decode', 'raw'], 'full'))
def test_an_honest_export_is_proven_at_other_sizes_and_batch_3(detector, form):
    verdict = prove(detector, toy_file(form), IMAGES)
    assert verdict.proven, verdict.to_json()
    assert sum(row.reference for case in cases_of(verdict) for row in case.detections) >= 50
    shapes = {case.input_shape for case in cases_of(verdict)}
    assert len(shapes) >= 3
    assert any(shape.startswith('3x') for shape in shapes)
    assert verdict.pairs and 'pairs' not in verdict.to_json()


def test_verify_exits_1_for_a_changed_weight_which_is_named(tmp_path, capsys):
    model = onnx.load(toy_file('raw'))
    weight = next(one for one in model.graph.initializer if one.name.endswith('bbox_head.atss_cls.weight'))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.05), weight.name))
    broken = str(tmp_path / 'faulty.onnx')
    onnx.save(model, broken)
    with samples_alone():
        status = verify_app.main([CONFIG, CHECKPOINT, broken, '--json', str(tmp_path / 'v.json')])
    assert status == 1
    assert 'NOT PROVEN' in capsys.readouterr().out
    verdict = read_json(tmp_path / 'v.json')
    assert verdict['verdict'] == 'not proven'
    (change,) = graphs_of(verdict)[0].differences
    assert 'atss_cls.weight' in change


@pytest.mark.matrix
def test_a_proof_in_which_next_to_nothing_is_found_is_no_proof(detector):
    verdict = prove(detector, toy_file('full'), [('black.png', np.zeros((240, 320, 3), np.uint8))])
    assert matched_of(verdict) < 10
    assert all(case.passed for case in cases_of(verdict)) and not verdict.proven


def loosened(tensors):
    for tensor in tensors:
        tensor['groups'] = [dict(name='', columns=None, unit='', rtol=0.5, atol=0.0)]


def as_unused(tensors):
    for tensor in tensors:
        tensor['unused'] = True


def reworded(tensors):
    for tensor in tensors:
        tensor['meaning'] = 'another description'


@pytest.mark.parametrize(
    ('side', 'change', 'key'),
    [('outputs', loosened, 'bbox_pred_0'), ('inputs', as_unused, 'input'), ('inputs', reworded, 'input')],
)
def test_a_file_has_the_contract_of_its_family_except_for_descriptions(detector, tmp_path, side, change, key):
    model = onnx.load(toy_file('raw'))
    entry = next(one for one in model.metadata_props if one.key == 'mm2onnx.spec')
    spec = json.loads(entry.value)
    change([one for one in spec[side] if one['name'] == key])
    entry.value = json.dumps(spec)
    onnx.save(model, tmp_path / 'told.onnx')
    verdict = check_files(detector, str(tmp_path / 'told.onnx'), IMAGES, written=True)
    failed = [one for one in checks_of(verdict) if not one.passed]
    assert [one.name for one in failed] == ([] if change is reworded else ['contract as in the family'])
    assert all(key in one.detail for one in failed)
