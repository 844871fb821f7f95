"""A detector of mmdet cut into two files: proven, swapped in, and planted faults found."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import toy_atss
from mmdeploy_ext import with_parts
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.bench.kit.judge import judge
from mmdeploy_ext.bench.kit.runners import run_onnxruntime
from mmdeploy_ext.cli import benchmark_app, export_app, kit_app, parts_app, test_app, verify_app
from mmdeploy_ext.families.synthetic.coco import ensure_toy_coco
from mmdeploy_ext.proving.parts import proof
from mmdeploy_ext.proving.parts.folder import CutFolder
from mmdeploy_ext.proving.parts.proof import prove_folder
from mmdeploy_ext.proving.parts.samples import run_test_path, samples_of


def test_a_live_model_runs_with_the_parts(cut_toy):
    model = cut_toy.factory.make()
    sample = cut_toy.samples[1]
    expected = run_test_path(model, sample)
    with with_parts(model, cut_toy.folder.path) as swapped:
        got = run_test_path(swapped, sample)
    for boxes, reference in zip(got[0], expected[0], strict=True):
        np.testing.assert_allclose(boxes, reference, rtol=1e-4, atol=1e-3)
    assert np.array_equal(run_test_path(model, sample)[0][0], expected[0][0])  # as before


def changed_copy(folder, target, difference):
    """Copy a folder of parts, and add to a weight of the head."""
    path = Path(shutil.copytree(folder.path, target), 'bbox_head.onnx')
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    array = numpy_helper.to_array(weight).copy()
    array.flat[0] += difference
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, path)
    return str(target)


def test_the_data_set_is_evaluated_with_the_parts_and_other_metrics_are_status_1(cut_toy, tmp_path):
    ensure_toy_coco(tmp_path / 'toy', train_images=1, val_images=1)
    files = dict(ann_file='annotations/instances_val2017.json', img_prefix='val2017/')
    settings = [f'data.test.{key}={tmp_path}/toy/{name}' for key, name in files.items()]
    folder, target = changed_copy(cut_toy.folder, tmp_path / 'cut', 500), tmp_path / 'metrics.json'
    words = ['--parts', folder, '--json', str(target), '--eval', 'bbox', '--cfg-options', *settings]
    assert test_app.main([toy_atss.CONFIG, toy_atss.CHECKPOINT, *words]) == 1
    row = json.loads(target.read_text())[0]
    assert row['name'] == 'bbox_mAP' and row['reference'] > max(0.5, row['candidate'] + 0.001)


def test_a_changed_constant_in_a_file_is_not_proven(cut_toy, tmp_path):
    folder = CutFolder.read(changed_copy(cut_toy.folder, tmp_path / 'cut', 0.5))
    verdict = prove_folder(cut_toy.factory, folder, cut_toy.samples[:2])
    assert not verdict.passed
    assert not verdict.of('file')[1].passed


def test_code_around_the_parts_that_changed_is_not_proven(cut_toy, monkeypatch):
    head = type(cut_toy.factory.make().bbox_head)
    decode = head.get_bboxes

    def shifted(self, *args, **kwargs):
        return [
            (boxes + boxes.new_tensor([1, 1, 1, 1, 0]), labels)
            for boxes, labels in decode(self, *args, **kwargs)
        ]

    monkeypatch.setattr(head, 'get_bboxes', shifted)
    verdict = prove_folder(cut_toy.factory, cut_toy.folder, cut_toy.samples[:2])
    assert not verdict.passed


def test_verify_proves_a_folder_within_the_whole_model(cut_toy, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(proof, 'prove_folder', lambda *given: made.append(prove_folder(*given)) or made[0])
    words = [
        toy_atss.CONFIG,
        toy_atss.CHECKPOINT,
        str(cut_toy.folder.path),
        '--json',
        str(tmp_path / 'v.json'),
    ]
    assert verify_app.main(words) == 0
    content = json.loads((tmp_path / 'v.json').read_text())
    assert content['verdict'] == 'proven' and content['summary']['matched'] > 100
    assert content['summary']['inputs'] == len(cut_toy.samples) + len(['dark', 'bright'])
    assert content['summary']['unseen_inputs'] == content['summary']['inputs'] - 1
    (verdict,) = made
    verdict.subject['precision'] = 'fp16'  # within its bars, never proven
    assert (verdict.proven, parts_app.show(verdict, None)) == (False, 0)


@pytest.mark.parametrize(('share', 'passed'), [(0.05, True), (0.2, False)])
@pytest.mark.matrix
def test_results_that_rounding_leaves_are_listed_if_they_are_few(cut_toy, monkeypatch, share, passed):
    run = proof.Whole.got

    def with_others(*given):
        step = run(*given)
        (classes,) = step.facts['result']
        max(classes, key=len)[: int(share * sum(map(len, classes))), :4] += 500
        return step

    monkeypatch.setattr(proof.Whole, 'got', with_others)
    verdict = prove_folder(cut_toy.factory, cut_toy.folder, cut_toy.samples[:2])
    assert verdict.passed == passed
    assert any('without a partner' in note for note in verdict.notes) == passed


def test_pictures_of_the_package_have_names(tmp_path):
    cfg = load_config(str(toy_atss.CONFIG), {'data.test.ann_file': str(tmp_path / 'none.json')})
    names = [sample['img_metas'][0].data[0][0]['filename'] for sample in samples_of(cfg)[0]]
    assert names == ['toy_0.jpg', 'toy_1.jpg', 'toy_2.jpg']


@pytest.mark.parametrize(('parts', 'key'), [('neckk', 'neck'), ('bbox_head+backbone', 'bbox_head')])
def test_what_is_no_part_is_refused_before_anything_is_written(parts, key, tmp_path, capsys):
    words = [toy_atss.CONFIG, toy_atss.CHECKPOINT, '--parts', parts, '--output-file', str(tmp_path / 'cut')]
    assert export_app.main(words) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / 'cut').exists()


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r'parts\.json'):
        CutFolder.read(tmp_path)


@pytest.mark.parametrize(
    ('key', 'value'),
    [('file', '../evil.onnx'), ('file', '/dev/zero'), ('inputs', 3), ('inputs', [{}]), ('results', None)],
)
def test_a_malformed_manifest_is_refused_by_its_key(cut_toy, tmp_path, key, value):
    folder = shutil.copytree(cut_toy.folder.path, tmp_path / 'cut')
    assert len(CutFolder.read(folder).parts)
    content = json.loads((folder / 'parts.json').read_text())
    content['parts'][0][key] = value
    (folder / 'parts.json').write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r'parts\.json'):
        CutFolder.read(folder)


def test_the_swapped_model_is_timed_against_pytorch(cut_toy, tmp_path):
    target = tmp_path / 'times.json'
    words = [toy_atss.CONFIG, toy_atss.CHECKPOINT, '--parts', str(cut_toy.folder.path), '--json', str(target)]
    assert benchmark_app.main([*words, '--max-iter', '2', '--warmup', '0']) == 0
    pytorch, parts = json.loads(target.read_text())
    assert pytorch['runs'] == parts['runs'] == 2
    assert parts['ratio_to_torch']['median'] > 0


def test_a_kit_of_a_folder_of_parts_is_judged_on_the_device(cut_toy, tmp_path):
    kit, outputs = tmp_path / 'kit', tmp_path / 'outputs'
    words = [str(cut_toy.folder.path), toy_atss.CONFIG, toy_atss.CHECKPOINT, '--out', str(kit)]
    assert kit_app.main(words) == 0
    run_onnxruntime.main(str(outputs), kit=kit)
    judgement = judge(kit, outputs)
    assert judgement.passed and judgement.subject['inputs'] == 2 * len(cut_toy.samples)
    case = outputs / 'bbox_head_001.npz'
    arrays = dict(np.load(case))
    first = next(iter(arrays))
    run_onnxruntime.save(case, {**arrays, first: arrays[first] + 0.1})
    assert not judge(kit, outputs).passed
