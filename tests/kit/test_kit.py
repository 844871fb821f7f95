"""A kit holds PyTorch's results; outputs of an engine are judged by them, in every format of engines."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest

import padded_first
from browser_pages import change_manifest
from mmdeploy_ext.cli import export_app, judge_app, kit_app
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import DataError, EngineError, InferenceError, ModelFileError, UsageError
from mmdeploy_ext.families.monocular import task as monocular_task
from mmdeploy_ext.families.monocular.runtime.detections import MonocularDetections
from mmdeploy_ext.kit import local_run
from mmdeploy_ext.kit.contents import ArrayFolder, KitCase
from mmdeploy_ext.kit.diagnosis import diagnose
from mmdeploy_ext.kit.judge import judge, promised_rows
from mmdeploy_ext.kit.outputs import read_outputs
from numpy_alone import run_command

MODEL = ('configs/demo/atss_toy.py', 'demo/checkpoints/atss_toy.pth')
LARGEST_BYTES = 20_000_000


@pytest.fixture(scope='module')
def kit(tmp_path_factory):
    """The kit of the exported ATSS toy in demo/."""
    folder = tmp_path_factory.mktemp('kit') / 'kit'
    assert kit_app.main(['demo/atss_toy.onnx', *MODEL, '--out', str(folder)]) == 0
    return folder


@pytest.fixture(scope='module')
def outputs(kit, tmp_path_factory):
    """What ONNX Runtime gives, by the script of the kit."""
    folder = tmp_path_factory.mktemp('outputs')
    command = [sys.executable, str(kit / 'run_onnxruntime.py'), str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder


def test_a_kit_is_small_and_its_own_script_gives_equal_outputs(kit, outputs):
    assert sum(path.stat().st_size for path in kit.rglob('*')) < LARGEST_BYTES
    judgement = judge(kit, outputs, told='this CPU')
    assert judgement.title == f'EQUAL ON {len(judgement.cases)} INPUTS (this CPU, as told)'
    assert sum(row.matched for case in judgement.cases for row in case.detections) > 500


def rewritten(outputs, folder, change):
    """Copy outputs, changed case by case."""
    for file in outputs.glob('*.npz'):
        with np.load(file) as arrays:
            change(folder / file.stem, dict(arrays))
    shutil.copyfile(outputs / 'kit.txt', folder / 'kit.txt')
    return folder


def as_trtexec(target, arrays):
    entries = [
        dict(name=name, dimensions='x'.join(map(str, array.shape)), values=array.ravel().tolist())
        for name, array in arrays.items()
    ]
    target.with_suffix('.json').write_text(json.dumps(entries))


def as_raw_files(target, arrays):
    target.mkdir()
    for name, array in arrays.items():
        array.tofile(target / f'{name}.bin')


def as_arrays(target, arrays):
    target.mkdir()
    for name, array in arrays.items():
        np.save(target / f'{name}.npy', array)


def with_narrow_labels(target, arrays):
    np.savez(target.with_suffix('.npz'), dets=arrays['dets'], labels=arrays['labels'].astype(np.int32))


@pytest.mark.parametrize('write', [as_trtexec, as_raw_files, as_arrays, with_narrow_labels])
def test_outputs_are_read_as_engines_write_them(kit, outputs, tmp_path, write):
    assert judge(kit, rewritten(outputs, tmp_path, write)).equal


def changed(**change):
    def write(target, arrays):
        arrays = {name: change.get(name, lambda array: array)(array) for name, array in arrays.items()}
        np.savez(
            target.with_suffix('.npz'), **{name: array for name, array in arrays.items() if array is not None}
        )

    return write


FAULTS = {
    'zeros': changed(dets=np.zeros_like),
    'permuted labels': changed(labels=lambda array: np.roll(array, 1, 1)),
    'a missing output': changed(labels=lambda _: None),
    'another dtype': changed(dets=lambda array: array.astype(np.float64)),
    'boxes moved by two pixels': changed(dets=lambda array: array + np.float32([2, 0, 2, 0, 0])),
    'scores lower by 0.001': changed(dets=lambda array: array - np.float32([0, 0, 0, 0, 1e-3])),
    'images of a batch mixed up': changed(dets=lambda array: array[::-1], labels=lambda array: array[::-1]),
    'one box fewer': changed(labels=lambda array: np.where(np.arange(array.shape[1]) == 0, -1, array)),
    'NaN': changed(dets=lambda array: array * np.float32(np.nan)),
    'the best result last': changed(dets=lambda array: array[:, ::-1], labels=lambda array: array[:, ::-1]),
    'padding with a class': changed(
        dets=lambda array: np.pad(array, ((0, 0), (0, 1), (0, 0))),
        labels=lambda array: np.pad(array, ((0, 0), (0, 1))),
    ),
}
FAULTS_OF_FILES = {  # which outputs in a browser cannot have
    'objects': changed(dets=lambda array: array.astype(object)),
    'labels that are no whole numbers': lambda target, arrays: as_trtexec(
        target, dict(arrays, labels=arrays['labels'] + 0.3)
    ),
}


@pytest.mark.suite(
    'zeros', 'a missing output', 'another dtype', 'boxes moved by two pixels', 'scores lower by 0.001',
    'images of a batch mixed up', 'NaN', 'padding with a class', 'labels that are no whole numbers',
)  # fmt: skip
@pytest.mark.parametrize('fault', FAULTS | FAULTS_OF_FILES)
def test_wrong_outputs_are_not_equal(kit, outputs, tmp_path, fault):
    judgement = judge(kit, rewritten(outputs, tmp_path, (FAULTS | FAULTS_OF_FILES)[fault]))
    assert judgement.title.startswith('NOT EQUAL') and judgement.failures


def test_outputs_of_another_kit_and_a_changed_kit_are_refused(kit, outputs, tmp_path):
    other = tmp_path / 'other'
    shutil.copytree(outputs, other)
    (other / 'kit.txt').write_text('0' * 64)
    with pytest.raises(DataError, match=r'kit\.txt'):
        judge(kit, other)
    edited = tmp_path / 'edited'
    shutil.copytree(kit, edited)
    array = next((edited / 'inputs').rglob('*.bin'))
    array.write_bytes(array.read_bytes()[:-1] + b'\1')
    with pytest.raises(DataError, match=array.name):
        judge(edited, outputs)


@pytest.mark.parametrize(
    ('first', 'second', 'names'),
    [
        (as_trtexec, changed(), '000.npz, 000.json'),
        (changed(), as_raw_files, '000.npz, 000/dets.bin'),
        (as_raw_files, lambda target, arrays: np.save(target / 'dets.npy', arrays['dets']), '000/dets.bin, '),
    ],
)
def test_outputs_of_a_case_by_two_runs_are_refused(tmp_path, first, second, names):
    outputs = (TensorSpec('dets', 'float32', (2,)),)
    for write in (first, second):
        write(tmp_path / '000', {'dets': np.zeros(2, np.float32)})
    with pytest.raises(DataError, match=f'has outputs of 000 twice: {re.escape(names)}'):
        read_outputs(tmp_path, '000', GraphSpec('g', (), outputs), {'dets': (2,)})


def test_a_case_without_outputs_fails_by_name(kit, outputs, tmp_path):
    shutil.copytree(outputs, tmp_path / 'lost')
    (tmp_path / 'lost/003.npz').unlink()
    judgement = judge(kit, tmp_path / 'lost')
    assert not judgement.equal and any(failure.startswith('003 ') for failure in judgement.failures)


def test_a_folder_without_any_outputs_is_refused_in_one_line(kit, tmp_path):
    with pytest.raises(DataError, match=r'has the outputs of no input of the kit; expected 000\.npz or 000/'):
        judge(kit, tmp_path)


def test_the_command_judges_with_numpy_alone(kit, outputs, tmp_path):
    done = run_command('judge', kit, outputs, '--told', 'x', '--json', tmp_path / 'v.json')
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / 'v.json').read_text())['equal']


def test_folders_that_are_no_kit_or_not_empty_are_refused(kit, outputs, tmp_path, capsys):
    assert judge_app.main([str(tmp_path), str(outputs)]) == 2
    assert 'manifest.json' in capsys.readouterr().err
    assert kit_app.main(['demo/atss_toy.onnx', *MODEL, '--out', str(outputs)]) == 2
    assert str(outputs) in capsys.readouterr().err


def test_rounded_factors_are_told():
    expected = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    inputs = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)

    def tf32(array):
        return (array.view(np.uint32) + 0x1000 & 0xFFFFE000).view(np.float32)

    rounded = tf32(expected) @ tf32(inputs)
    assert 'is TF32 on' in diagnose(expected @ inputs, rounded)


@pytest.mark.parametrize('expected', [np.random.default_rng(0).random((2, 3, 4)), np.zeros((2, 3))])
def test_values_that_are_pytorchs_get_no_explanation(expected):
    expected = expected.astype(np.float32)
    assert diagnose(expected, expected.astype(np.float64) * (1 + 1e-7)) == ''
    assert diagnose(np.ones(3, np.int64), np.ones(3, np.float32)) == ''  # the dtype alone is wrong


def named(fault):
    return {
        'other axes': (changed(dets=lambda array: array.transpose(0, 2, 1)), 'dets: shape: got 1x5x'),
        'missing': (FAULTS['a missing output'], 'labels: missing; the engine gave dets'),
        'dtype': (FAULTS['another dtype'], 'dets: dtype: got float64, expected float32'),
        'raw, half': (
            as_raw(dets=lambda array: array.astype(np.float16)),
            '; 2 bytes per value: write the dtype of the file, or .npy',
        ),
        'raw, fewer rows': (
            as_raw(labels=lambda array: array[:, 1:]),
            'labels.bin: has 792 bytes, expected 800 of int64 [1, 100]; a raw file has no shape of its own',
        ),
        'extra': (renamed, 'boxes: not an output of this kit; these are dets, labels'),
    }[fault]


def as_raw(**change):
    def write(target, arrays):
        arrays = {name: change.get(name, lambda array: array)(array) for name, array in arrays.items()}
        as_raw_files(target, {name: np.ascontiguousarray(array) for name, array in arrays.items()})

    return write


def renamed(target, arrays):
    np.savez(target.with_suffix('.npz'), boxes=arrays['dets'], labels=arrays['labels'])


NAMED = ['other axes', 'missing', 'dtype', 'extra', 'raw, half', 'raw, fewer rows']


@pytest.mark.parametrize('fault', NAMED)
def test_the_reason_names_what_is_wrong_with_an_output(kit, outputs, tmp_path, fault):
    change, reason = named(fault)
    judgement = judge(kit, rewritten(outputs, tmp_path, change))
    assert any(reason in failure for failure in judgement.failures), judgement.failures


def in_half_precision(target, arrays):
    noise = np.random.default_rng(0).normal(0, 2e-3, arrays['dets'].shape).astype(np.float32)
    noise[..., :4] *= 100
    dets = arrays['dets'] + noise
    order = np.argsort(-dets[..., 4], axis=1, kind='stable')  # an engine sorts by its own scores
    labels = np.take_along_axis(arrays['labels'], order, 1)
    np.savez(target.with_suffix('.npz'), dets=np.take_along_axis(dets, order[..., None], 1), labels=labels)


def overflowed(target, arrays):
    dets = (arrays['dets'] * np.float32(300)).astype(np.float16).astype(np.float32) / np.float32(300)
    np.savez(target.with_suffix('.npz'), dets=dets, labels=arrays['labels'])


def test_half_precision_has_bars_of_its_own_and_an_overflow_is_beyond_them(kit, outputs, tmp_path):
    for name, change in (('half', in_half_precision), ('overflow', overflowed)):
        (tmp_path / name).mkdir()
        rewritten(outputs, tmp_path / name, change)
    assert not judge(kit, tmp_path / 'half').equal
    judgement = judge(kit, tmp_path / 'half', precision='fp16', told='x')
    assert judgement.title == 'WITHIN FP16 BARS ON 6 INPUTS (x, as told)', judgement.failures
    assert judge(kit, tmp_path / 'overflow', precision='fp16').title == 'NOT WITHIN FP16 BARS'


def test_a_kit_whose_manifest_was_changed_is_refused(kit, outputs, tmp_path):
    shutil.copytree(kit, tmp_path / 'kit')
    path = tmp_path / 'kit/manifest.json'
    path.write_text(path.read_text().replace('traced input', 'another input'))
    with pytest.raises(DataError, match='was changed since the kit was made'):
        judge(tmp_path / 'kit', outputs)


def test_files_of_kits_have_no_optional_inputs_and_the_hash_of_the_file_that_was_given(kit):
    model = onnx.load(kit / 'model.onnx')
    weights = {tensor.name for tensor in model.graph.initializer}
    assert not weights & {value.name for value in model.graph.input} and len(model.graph.input) == 3
    (graph,) = json.loads((kit / 'manifest.json').read_text())['graphs']
    assert graph['source_sha256'] == hashlib.sha256(Path('demo/atss_toy.onnx').read_bytes()).hexdigest()


def test_a_case_with_nothing_to_compare_fails(kit, outputs, tmp_path):
    shutil.copytree(kit, tmp_path / 'kit')
    shutil.copytree(outputs, tmp_path / 'outputs')
    (tmp_path / 'outputs/kit.txt').unlink()
    change_manifest(tmp_path / 'kit', lambda manifest: manifest['cases'][0].update(results=[], images=[]))
    failures = judge(tmp_path / 'kit', tmp_path / 'outputs').failures
    assert len(failures) == 1 and 'has nothing of PyTorch to compare' in failures[0]


def test_bars_of_no_precision_are_refused(kit, outputs):
    with pytest.raises(UsageError, match="precision='float32': expected one of fp32"):
        judge(kit, outputs, precision='float32')


def test_inputs_without_any_result_of_pytorch_are_not_equal_for_a_reason(kit, outputs, tmp_path):
    def without_results(manifest):
        for image in (image for case in manifest['cases'] for image in case['results']):
            for entry in image['fields'].values():
                entry.update(file='empty.bin', shape=[0, *entry['shape'][1:]])

    shutil.copytree(kit, tmp_path / 'kit')
    (tmp_path / 'kit/empty.bin').touch()
    change_manifest(tmp_path / 'kit', without_results)
    (tmp_path / 'outputs').mkdir()
    nothing = changed(dets=np.zeros_like, labels=lambda labels: np.full_like(labels, -1))
    rewritten(outputs, tmp_path / 'outputs', nothing)
    (tmp_path / 'outputs/kit.txt').unlink()
    judgement = judge(tmp_path / 'kit', tmp_path / 'outputs')
    assert not judgement.equal and judgement.failures == [
        'nothing was compared: PyTorch has no result in these inputs'
    ]


def test_an_engine_that_fails_is_an_error_that_names_the_file(kit, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError('no such\noperator')

    monkeypatch.setitem(local_run.OPENERS, 'onnxruntime', fail)
    with pytest.raises(EngineError, match=r'^model\.onnx: onnxruntime cannot take it: no such operator'):
        local_run.run_kit(kit, tmp_path / 'a', 'onnxruntime')
    monkeypatch.setitem(local_run.OPENERS, 'onnxruntime', lambda *_: fail)
    with pytest.raises(InferenceError, match=r'^model\.onnx: onnxruntime failed to run it: no such'):
        local_run.run_kit(kit, tmp_path / 'b', 'onnxruntime')


def camera_boxes(count=3):
    boxes = np.arange(9 * count, dtype=np.float32).reshape(count, 9)
    scores, labels = np.linspace(0.9, 0.3, count, dtype=np.float32), np.zeros(count, np.int64)
    camera = ((800.0, 0.0, 320.0, 0.0), (0.0, 800.0, 180.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    return MonocularDetections(boxes, scores, labels, labels + 2, camera=camera, code_size=7)


def test_results_of_a_class_of_a_family_come_back_with_what_is_no_array(tmp_path):
    case = KitCase('000', 'model', 'a', ('a',), {}, {}, {}, [camera_boxes()], 'monocular')
    entry = json.loads(json.dumps(case.write(ArrayFolder(tmp_path), {})))
    (read,) = KitCase.read(tmp_path, entry, 'monocular').results
    np.testing.assert_array_equal(read.boxes, camera_boxes().boxes)
    np.testing.assert_array_equal(read.attributes, [2, 2, 2])
    assert (read.code_size, read.bboxes_xyxy) == (7, None)
    assert np.array_equal(read.camera, camera_boxes().camera)
    assert monocular_task.match_detections('a', camera_boxes(), read).passed


@pytest.mark.parametrize('family', ['', 'dense'])
def test_results_of_a_class_that_the_family_does_not_name_are_refused(tmp_path, family):
    case = KitCase('000', 'model', 'a', ('a',), {}, {}, {}, [camera_boxes()], family)
    with pytest.raises(UsageError, match='results of the class MonocularDetections: kits hold Detections, '):
        case.write(ArrayFolder(tmp_path), {})


@pytest.mark.parametrize(
    ('family', 'error', 'text'),
    [
        ('elsewhere', ModelFileError, "family 'elsewhere' is not registered here; .* Install the package"),
        ('dense', DataError, 'results of the class TurnedBoxes; there are Detections, '),
    ],
)
def test_a_kit_with_results_of_a_class_that_is_not_here_is_refused(tmp_path, family, error, text):
    with pytest.raises(error, match=text):
        KitCase.read(tmp_path, {'results': [{'type': 'TurnedBoxes'}]}, family)


@pytest.mark.parametrize(
    ('key', 'change', 'text'),
    [
        ('classes', lambda names: names[::-1], 'not classes as in '),
        ('preprocess', lambda rule: rule | dict(to_rgb=False), 'not preprocessing as in the config: to_rgb'),
        ('postprocess', lambda facts: facts | dict(max_per_img=50), 'not post-processing as in the config'),
    ],
)
def test_no_kit_is_written_of_a_file_that_states_another_model(tmp_path, capsys, key, change, text):
    model = onnx.load('demo/atss_toy.onnx')
    entry = next(entry for entry in model.metadata_props if entry.key == f'mm2onnx.{key}')
    entry.value = json.dumps(change(json.loads(entry.value)))
    onnx.save(model, tmp_path / 'm.onnx')
    assert kit_app.main([str(tmp_path / 'm.onnx'), *MODEL, '--out', str(tmp_path / 'kit')]) == 2
    assert text in capsys.readouterr().err and not (tmp_path / 'kit').exists()


@pytest.mark.parametrize(('samples', 'failures'), [('images', 1), ('frames', 0)])
def test_files_of_pictures_alone_promise_rows_that_are_padded(samples, failures):
    arrays = dict(scores=np.float32([[0.1, 0.9]]), labels=np.int64([[0, 1]]))
    spec = types.SimpleNamespace(output_names=('scores', 'labels'))
    metadata = types.SimpleNamespace(samples=samples, spec=spec, postprocess={}, classes=('a', 'b'))
    if samples == 'frames':  # BEVFusion's boxes are those of one frame, in no order
        arrays = {name: array[0] for name, array in arrays.items()}
    assert len(promised_rows(metadata, arrays)) == failures


def test_a_kit_of_a_file_with_a_mean_of_its_own_has_to_be_told_the_mean(tmp_path, capsys):
    model = padded_first.write_config(tmp_path), MODEL[1]
    file, folder = str(tmp_path / 'm.onnx'), str(tmp_path / 'kit')
    words = ['--output-file', file, '--shape', '128', '160', *padded_first.OWN_MEAN]
    assert export_app.main([*model, *words]) == 0
    assert kit_app.main([file, *model, '--out', folder, *padded_first.OWN_MEAN]) == 0, capsys.readouterr().err
    assert kit_app.main([file, *model, '--out', str(tmp_path / 'other')]) == 2
    error = capsys.readouterr().err
    assert 'm.onnx: not preprocessing as in the config: mean' in error and '--mean' in error
