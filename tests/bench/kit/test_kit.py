"""A kit holds PyTorch's results; outputs of an engine are judged by them, in every format of engines."""

import json
import shutil
import sys

import numpy as np
import onnx
import pytest

from few_packages import run_command
from kits import ATSS
from mmdeploy_ext.base.errors import DataError, UsageError
from mmdeploy_ext.bench.kit.contents import kit_hash
from mmdeploy_ext.bench.kit.engine_files import DETECT, RUNNERS
from mmdeploy_ext.bench.kit.judge import judge, title_of, to_json
from mmdeploy_ext.bench.kit.local_run import run_kit
from mmdeploy_ext.bench.kit.runners import run_onnxruntime
from mmdeploy_ext.bench.kit.writer import write_readme
from mmdeploy_ext.cli import judge_app, kit_app
from mmdeploy_ext.proving.explain import diagnose
from wrong_outputs import FAULTS, rewritten

LARGEST_BYTES = 20_000_000
PUBLISHED = {'verdict', 'equal', 'failures', 'told', 'precision', 'ran', 'inputs', 'frames', 'notes'}
"""Keys of `judge --json` since 0.2.0."""


def test_a_kit_is_small_and_its_own_script_gives_equal_outputs(atss):
    kit, outputs = atss
    assert sum(path.stat().st_size for path in kit.rglob('*')) < LARGEST_BYTES
    judgement = judge(kit, outputs, told='this CPU')
    assert title_of(judgement) == f'EQUAL ON {judgement.summary()["inputs"]} INPUTS (this CPU, as told)'
    assert judgement.summary()['matched'] > 500


def test_only_the_program_of_a_kit_names_what_to_judge(atss, tmp_path, monkeypatch):
    kit, said = atss[0], []
    run_onnxruntime.main(str(tmp_path / 'here'), kit=kit, say=said.append)
    monkeypatch.setattr(run_onnxruntime, 'KIT', kit)
    run_onnxruntime.main(str(tmp_path / 'there'), kit=kit, say=said.append)
    assert [line for line in said if 'judge' in line] == said[-1:]
    assert f'judge {kit} {tmp_path}/there' in said[-1]


def test_the_readme_of_a_kit_has_a_command_for_each_of_its_programs(atss, tmp_path):
    folder = tmp_path / 'kit'
    shutil.copytree(atss[0], folder)
    shutil.copy(RUNNERS / DETECT, folder)
    write_readme(folder, json.loads((folder / 'manifest.json').read_text()))
    _, *blocks = (folder / 'README.md').read_text().split('```bash')
    commands = ' '.join(block.split('```')[0] for block in blocks).split()
    programs = {path.name for path in folder.iterdir() if path.suffix in ('.py', '.sh', '.c', '.cpp')}
    assert DETECT in programs and programs <= set(commands)


def test_the_command_judges_with_numpy_alone(atss, tmp_path):
    done = run_command('judge', *atss, '--told', 'x', '--json', tmp_path / 'v.json')
    assert done.returncode == 0, done.stderr
    verdict = json.loads((tmp_path / 'v.json').read_text())
    assert verdict.keys() >= PUBLISHED
    assert verdict['equal'] is True and verdict['failures'] == [] and verdict['told'] == 'x'


def test_a_verdict_that_is_not_equal_has_the_published_keys_and_its_failures(atss, tmp_path):
    shutil.copyfile(atss[1] / 'kit.txt', tmp_path / 'kit.txt')
    np.savez(tmp_path / min(atss[1].glob('*.npz')).name, dets=np.zeros(3))
    verdict = to_json(judge(atss[0], tmp_path))
    assert verdict.keys() >= PUBLISHED
    assert verdict['equal'] is False and len(verdict['failures']) > 1


def as_trtexec(target, arrays):
    entries = [
        dict(name=name, dimensions='x'.join(map(str, array.shape)), values=array.ravel().tolist())
        for name, array in arrays.items()
    ]
    target.with_suffix('.json').write_text(json.dumps(entries))


def as_raw_files(target, arrays):
    target.mkdir()
    for name, array in arrays.items():
        np.ascontiguousarray(array).tofile(target / f'{name}.bin')


def as_arrays(target, arrays):
    target.mkdir()
    for name, array in arrays.items():
        np.save(target / f'{name}.npy', array)


def with_narrow_labels(target, arrays):
    np.savez(target.with_suffix('.npz'), dets=arrays['dets'], labels=arrays['labels'].astype(np.int32))


@pytest.mark.parametrize('write', [as_trtexec, as_raw_files, as_arrays, with_narrow_labels])
def test_outputs_are_read_as_engines_write_them(atss, tmp_path, write):
    kit, outputs = atss
    assert judge(kit, rewritten(outputs, tmp_path / 'o', write)).passed


@pytest.mark.parametrize('fault', FAULTS)
def test_wrong_outputs_are_not_equal(atss, tmp_path, fault):
    kit, outputs = atss
    judgement = judge(kit, rewritten(outputs, tmp_path / 'o', FAULTS[fault]))
    assert title_of(judgement).startswith('NOT EQUAL') and judgement.failures


def labels_and_a_bit(target, arrays):
    as_trtexec(target, dict(arrays, labels=arrays['labels'] + 0.3))


def raw_half(target, arrays):
    as_raw_files(target, dict(arrays, dets=arrays['dets'].astype(np.float16)))


def raw_row_fewer(target, arrays):
    as_raw_files(target, dict(arrays, labels=arrays['labels'][:, 1:]))


def renamed(target, arrays):
    np.savez(target.with_suffix('.npz'), boxes=arrays['dets'], labels=arrays['labels'])


@pytest.mark.parametrize(
    ('change', 'name'),
    [(labels_and_a_bit, 'labels'), (raw_half, 'dets.bin'), (raw_row_fewer, 'labels.bin'), (renamed, 'boxes')],
)
def test_files_that_do_not_fit_fail_by_name(atss, tmp_path, change, name):
    kit, outputs = atss
    judgement = judge(kit, rewritten(outputs, tmp_path / 'o', change))
    assert any(name in failure for failure in judgement.failures), judgement.failures


def test_outputs_of_another_kit_and_changed_kits_are_refused(atss, tmp_path):
    kit, outputs = atss
    shutil.copytree(outputs, tmp_path / 'other')
    (tmp_path / 'other/kit.txt').write_text('0' * 64)
    with pytest.raises(DataError, match=r'kit\.txt'):
        judge(kit, tmp_path / 'other')
    shutil.copytree(kit, tmp_path / 'kit')
    manifest = tmp_path / 'kit/manifest.json'
    manifest.write_text(manifest.read_text().replace('traced input', 'another input'))
    with pytest.raises(DataError, match=r'manifest\.json'):
        judge(tmp_path / 'kit', outputs)
    shutil.copyfile(kit / 'manifest.json', manifest)
    array = next((tmp_path / 'kit/inputs').rglob('*.bin'))
    array.write_bytes(array.read_bytes()[:-1] + b'\1')
    with pytest.raises(DataError, match=array.name):
        judge(tmp_path / 'kit', outputs)


def test_a_case_without_outputs_fails_by_name(atss, tmp_path):
    kit, outputs = atss
    shutil.copytree(outputs, tmp_path / 'lost')
    (tmp_path / 'lost/003.npz').unlink()
    judgement = judge(kit, tmp_path / 'lost')
    assert not judgement.passed and any(failure.startswith('003 ') for failure in judgement.failures)


def test_rounded_factors_and_constants_are_told():
    random = np.random.default_rng(0)
    expected, inputs = random.standard_normal((2, 64, 64)).astype(np.float32)

    def tf32(array):
        return (array.view(np.uint32) + 0x1000 & 0xFFFFE000).view(np.float32)

    assert 'TF32' in diagnose(expected @ inputs, tf32(expected) @ tf32(inputs))
    assert diagnose(expected, np.zeros_like(expected)) == 'every value is 0'
    assert diagnose(expected, expected.astype(np.float64) * (1 + 1e-7)) == ''


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


def test_half_precision_has_bars_of_its_own_and_an_overflow_is_beyond_them(atss, tmp_path):
    kit, outputs = atss
    half = rewritten(outputs, tmp_path / 'half', in_half_precision)
    assert not judge(kit, half).passed
    judgement = judge(kit, half, precision='fp16', told='x')
    assert title_of(judgement) == 'WITHIN FP16 BARS ON 7 INPUTS (x, as told)', judgement.failures
    overflow = rewritten(outputs, tmp_path / 'overflow', overflowed)
    assert judge(kit, overflow, precision='fp16').title == 'NOT WITHIN FP16 BARS'


@pytest.mark.parametrize(
    ('key', 'change'),
    [('classes', lambda names: names[::-1]), ('preprocess', lambda rule: rule | dict(to_rgb=False))],
)
def test_no_kit_is_written_of_a_file_that_states_another_model(tmp_path, capsys, key, change):
    model = onnx.load('demo/atss_toy.onnx')
    entry = next(entry for entry in model.metadata_props if entry.key == f'mm2onnx.{key}')
    entry.value = json.dumps(change(json.loads(entry.value)))
    onnx.save(model, tmp_path / 'm.onnx')
    assert kit_app.main([str(tmp_path / 'm.onnx'), *ATSS, '--out', str(tmp_path / 'kit')]) == 2
    assert key in capsys.readouterr().err and not (tmp_path / 'kit').exists()


def test_a_task_of_no_installed_family_is_not_imported(atss, tmp_path):
    kit = shutil.copytree(atss[0], tmp_path / 'kit')
    (tmp_path / 'foreign_task.py').write_text('raise SystemExit("was imported")')
    manifest = json.loads((kit / 'manifest.json').read_text()) | dict(task='foreign_task')
    manifest['kit_sha256'] = kit_hash(manifest)
    (kit / 'manifest.json').write_text(json.dumps(manifest))
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(DataError, match='foreign_task'):
            judge(kit, atss[1])
    finally:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ('key', 'value', 'named'),
    [
        ('task', 3, 'task'),
        ('graphs', [], 'graphs'),
        ('graphs 0 metadata', [], 'metadata'),
        ('graphs 0 file', '/etc/hostname', 'graph'),
        ('cases 0 name', '../../evil', 'case'),
        ('cases 0 name', 'a\0b', 'case'),
        ('cases 0 graph', 'none', 'none'),
        ('cases 0 images', 'x', r'images'),
        ('cases 0 inputs input dtype', 'object', 'dtype'),
        ('cases 0 inputs input shape', [-1], 'shape'),
        ('cases 0 inputs input shape', [1, 3, 256, 321], 'bytes'),
        ('cases 0 inputs input file', '../secret', 'secret'),
        ('files ../secret', '', 'secret'),
        ('cases 0 results 0 fields', {}, 'Detections'),
        ('cases 0 output_shapes', 3, 'output_shapes'),
        ('frames', [{'name': '000', 'title': '', 'steps': [], 'outputs': 'chain_000'}], 'frames'),
        ('frames', [{'name': '000', 'title': '', 'steps': [], 'outputs': '../evil'}], 'frames'),
        ('precision', 'int4', 'precision'),
    ],
)
def test_a_malformed_manifest_is_refused_by_its_key(atss, tmp_path, key, value, named):
    kit = shutil.copytree(atss[0], tmp_path / 'kit')
    manifest = json.loads((kit / 'manifest.json').read_text())
    entry, *path = manifest, *(int(word) if word.isdigit() else word for word in key.split())
    for word in path[:-1]:
        entry = entry[word]
    entry[path[-1]] = value
    manifest['kit_sha256'] = kit_hash(manifest)
    (kit / 'manifest.json').write_text(json.dumps(manifest))
    outputs = shutil.copytree(atss[1], tmp_path / 'outputs')
    (outputs / 'kit.txt').write_text(manifest['kit_sha256'])
    with pytest.raises(DataError, match=named):
        judge(kit, outputs)
    if path[0] != 'cases' or path[-1] in ('name', 'shape'):
        with pytest.raises(DataError, match=named):
            run_kit(kit, tmp_path / 'ran', 'onnxruntime')
    assert {path.name for path in tmp_path.iterdir()} == {'kit', 'outputs'}


def test_a_link_in_a_kit_and_a_deep_manifest_are_refused(atss, tmp_path):
    kit = shutil.copytree(atss[0], tmp_path / 'kit')
    array = next(kit.glob('inputs/*/*.bin'))
    array.rename(tmp_path / 'elsewhere')
    array.symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(DataError, match='is a link'):
        judge(kit, atss[1])
    (kit / 'manifest.json').write_text('[' * 50_000 + ']' * 50_000)
    with pytest.raises(UsageError, match=r'manifest\.json'):
        judge(kit, atss[1])


def test_a_kit_and_its_outputs_are_not_overwritten(atss, tmp_path, capsys):
    kit, outputs = (shutil.copytree(folder, tmp_path / folder.name) for folder in atss)
    for target in (kit / 'manifest.json', kit / 'model.onnx', outputs / '000.npz'):
        before = target.read_bytes()
        assert judge_app.main([str(kit), str(outputs), '--json', str(target)]) == 2
        assert target.read_bytes() == before and target.name in capsys.readouterr().err


def test_a_title_of_a_kit_prints_no_line_of_its_own(atss, tmp_path, capsys):
    kit, outputs = (shutil.copytree(folder, tmp_path / folder.name) for folder in atss)
    manifest = json.loads((kit / 'manifest.json').read_text())
    manifest['cases'][0]['title'] = 'a\nEQUAL everything'
    manifest['kit_sha256'] = kit_hash(manifest)
    (kit / 'manifest.json').write_text(json.dumps(manifest))
    (outputs / 'kit.txt').write_text(manifest['kit_sha256'])
    assert judge_app.main([str(kit), str(outputs)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(manifest['cases']) + 1
