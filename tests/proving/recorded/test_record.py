"""A recording answers for the environment of the training, and a changed one is found."""

import ast
import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms

from marking import in_suite
from mmdeploy_ext.api import ProofRequest, ask_read, prove_read, read_detector
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import ConfigError, DataError, UsageError
from mmdeploy_ext.families.common.samples import ClockwiseBoxes
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.recorded import record
from mmdeploy_ext.proving.recorded.calls import Ask, Heads, Recording, as_mmdet2, convention_of, sums_of
from mmdeploy_ext.proving.views.table import print_verdict
from mmdeploy_ext.spec.verdict import NOTHING_COMPARED
from proofs import fresh_exports_once, samples_alone
from toy_atss import CHECKPOINT, CONFIG, REPO, export_toy, load_toy

SOURCE = record.__file__


def run_record(folder, *words):
    command = [
        sys.executable,
        str(folder / 'record.py'),
        CONFIG,
        CHECKPOINT,
        '--import',
        'mmdeploy_ext.upstream.compat:apply',
    ]
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, cwd=REPO, check=False)


@pytest.fixture(scope='module', autouse=True)
def exports():
    with fresh_exports_once(), samples_alone():
        yield


@pytest.fixture(scope='module')
def request_of_toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp('recorded')
    file = export_toy(load_toy(), folder / 'm.onnx', dynamic=False, height=128, width=160)
    return ProofRequest(CONFIG, CHECKPOINT, file), folder


@pytest.fixture(scope='module')
def recorded(request_of_toy):
    request, folder = request_of_toy
    assert ask_read(read_detector(request), request, folder / 'ask') >= 5
    finished = run_record(
        folder / 'ask', '--inputs', folder / 'ask', '--out', folder / 'rec', '--images', REPO / 'demo/toy.jpg'
    )
    assert finished.returncode == 0, finished.stderr
    return folder / 'rec'


def verdict_of(request_of_toy, folder):
    request, _ = request_of_toy
    request = ProofRequest(request.config, request.checkpoint, request.onnx_file, recorded=folder)
    return prove_read(read_detector(request), request)


@pytest.fixture(scope='module')
def verdict(request_of_toy, recorded):
    return verdict_of(request_of_toy, recorded)


def test_results_of_another_environment_are_the_reference_and_are_named(verdict):
    assert verdict.proven, verdict.failures
    assert verdict.subject['recorded'].startswith('mmdet 2.28.2 with torch')
    assert verdict.with_figure('recorded')


def test_a_claim_that_rests_on_results_alone_says_so(request_of_toy, recorded, verdict, tmp_path):
    folder = shutil.copytree(recorded, tmp_path / 'rec')
    changed_manifest(folder, lambda entry: [call.update(modules=[]) for call in entry['calls']])
    of_results = verdict_of(request_of_toy, folder)
    assert of_results.proven and 'results only' in of_results.subject['recorded']
    assert 'results only' not in verdict.subject['recorded']


@pytest.mark.matrix
def test_names_of_more_classes_than_the_model_has_are_not_compared(request_of_toy, recorded, tmp_path):
    folder = shutil.copytree(recorded, tmp_path / 'rec')
    changed_manifest(folder, lambda entry: entry['classes'].append('none'))
    assert verdict_of(request_of_toy, folder).proven


def changed_arrays(folder, change):
    for path in folder.glob('0*.npz'):
        with np.load(path) as file:
            arrays = dict(file)
        np.savez_compressed(path, **change(arrays))


def changed_manifest(folder, change):
    path = folder / 'manifest.json'
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def columns(*places):
    """Return a function that changes columns of the results (n, 5) of a recording."""

    def change(folder, value, scale=1.0):
        def of(arrays):
            for array in arrays.values():
                if array.ndim == 2 and array.shape[1] == 5:
                    array[:, places] = array[:, places] * scale + value
            return arrays

        changed_arrays(folder, of)

    return change


def other_head(folder):
    def of(arrays):
        for array in arrays.values():
            if array.ndim == 4:
                array += 0.05
        return arrays

    changed_arrays(folder, of)


def suppressed(folder):
    def of(arrays):
        for name, array in arrays.items():
            if array.ndim == 2 and array.shape[1] == 5 and len(array):
                boxes, scores = torch.from_numpy(array[:, :4].copy()), torch.from_numpy(array[:, 4].copy())
                arrays[name] = batched_nms(boxes, scores, torch.zeros(len(array)), dict(iou_threshold=0.3))[0]
        return arrays

    changed_arrays(folder, of)


def other_order(manifest):
    inputs = [call['input'] for call in manifest['calls']]
    for call, entry in zip(manifest['calls'], [*inputs[1:], inputs[0]], strict=True):
        call['input'] = entry


def other_weights(manifest):
    manifest['checkpoint']['sha256'] = '0' * 64
    name = next(name for name in manifest['weights'] if name.endswith('atss_cls.weight'))
    manifest['weights'][name] = '0' * 64


FAULTS = {
    'boxes 3 pixels to the right': lambda folder: columns(0, 2)(folder, 3.0),
    'a decode 0.5 pixels off': lambda folder: columns(0, 1, 2, 3)(folder, 0.5),
    'another NMS threshold': suppressed,
    'scores 0.05 lower': lambda folder: columns(4)(folder, -0.05),
    'boxes half as large': lambda folder: columns(2, 3)(folder, 0.0, 0.5),
    'outputs of the head': other_head,
    'results of another input': lambda folder: changed_manifest(folder, other_order),
    'another test_cfg': lambda folder: changed_manifest(
        folder, lambda entry: entry['test_cfg'].update(score_thr=0.3)
    ),
    'other classes': lambda folder: changed_manifest(folder, lambda entry: entry['classes'].reverse()),
    'other weights': lambda folder: changed_manifest(folder, other_weights),
    'no input': lambda folder: changed_manifest(folder, lambda entry: entry.update(calls=[])),
    'the empty image alone': lambda folder: changed_manifest(
        folder, lambda entry: entry.update(calls=entry['calls'][:1])
    ),
    'an unreadable result of the empty image': lambda folder: changed_manifest(
        folder, lambda entry: entry['calls'][0].update(result=[{'__array__': 'none'}])
    ),
    'another preparation': lambda folder: changed_arrays_of_own(folder),
}


def changed_arrays_of_own(folder):
    (path,) = folder.glob('own_*.npz')
    with np.load(path) as file:
        arrays = dict(file)
    name = max(arrays, key=lambda name: arrays[name].size)
    arrays[name] = np.roll(arrays[name], 1, -1)
    np.savez_compressed(path, **arrays)


@pytest.mark.parametrize(
    'fault',
    in_suite(FAULTS, 'a decode 0.5 pixels off', 'outputs of the head', 'the empty image alone'),
)
def test_a_recording_with_a_fault_is_no_proof(request_of_toy, recorded, tmp_path, fault):
    folder = shutil.copytree(recorded, tmp_path / 'rec')
    FAULTS[fault](folder)
    found = verdict_of(request_of_toy, folder)
    assert not found.passed
    assert not any(line.startswith(NOTHING_COMPARED) for line in found.failures)


def test_random_weights_are_not_recorded(request_of_toy, recorded, tmp_path, monkeypatch):
    _, folder = request_of_toy
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    state = checkpoint['state_dict']
    name = next(name for name in state if name.endswith('atss_reg.weight'))
    state[name] = state[name][:, :-1]
    torch.save(checkpoint, tmp_path / 'other.pth')
    words = [
        'record.py',
        CONFIG,
        tmp_path / 'other.pth',
        '--inputs',
        folder / 'ask',
        '--out',
        tmp_path / 'rec',
    ]
    monkeypatch.setattr(sys, 'argv', [*map(str, words)])
    monkeypatch.setattr(sys, 'path', [*sys.path])
    with pytest.raises(SystemExit, match=name):
        record.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['other.pth']


def test_an_ask_that_names_a_file_elsewhere_is_refused(tmp_path):
    asked = dict(format=record.FORMAT, checkpoint='', calls=[dict(file='../evil.npz')])
    (tmp_path / 'ask').mkdir()
    (tmp_path / 'evil.npz').write_bytes(b'')
    (tmp_path / 'ask/ask.json').write_text(json.dumps(asked))
    with pytest.raises(record.Refusal, match='evil'):
        record.asked_of(str(tmp_path / 'ask'))


def test_record_py_is_python_3_6():
    with open(SOURCE, encoding='utf-8') as file:
        ast.parse(file.read(), feature_version=(3, 6))


def test_a_picture_is_loaded_without_annotations_of_any_kind():
    names = ['LoadImageFromFile', 'LoadAnnotations', 'Resize', 'LoadPanopticAnnotations', 'LoadAnnotations3D']
    steps = record.without_annotations([dict(type=name) for name in names])
    assert [step['type'] for step in steps] == ['LoadImageFromFile', 'Resize']


@pytest.mark.parametrize(
    'wrap',
    [
        lambda data: data,
        lambda data: [data, dict(type='other')],
        lambda data: dict(type='ConcatDataset', datasets=[data, dict(type='other')]),
        lambda data: dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[data])),
    ],
)
def test_the_data_set_inside_of_wrappers_and_lists_is_recorded(wrap):
    data = dict(type='CocoDataset', pipeline=[dict(type='LoadImageFromFile')])
    assert record.innermost(wrap(data)) == record.innermost(dict(dataset=wrap(data))) == data


def test_values_survive_the_way_there_and_back():
    value = dict(
        a=(1, 2.5, None),
        masks=np.arange(90).reshape(9, 10) % 3 == 0,
        x=[torch.arange(4)],
        n={1: float('inf')},
    )
    tree = record.Tree()
    entry = json.loads(json.dumps(tree.put(value), allow_nan=False))
    back = record.restored(entry, tree.arrays)
    assert back['a'] == value['a'] and back['n'] == value['n'] and not tree.unknown
    assert np.array_equal(back['masks'], value['masks']) and torch.equal(back['x'][0], value['x'][0])


YAW = 0.3
C, S = np.cos(YAW), np.sin(YAW)


def box(length_axis, width_axis):
    """Return the corners of a box 4 m long, 2 m wide, 1.5 m high around (10, 5, -1) at its bottom."""
    places = [(i, j, k) for i in (-2, 2) for j in (-1, 1) for k in (0, 1.5)]
    return np.array(
        [
            [10 + i * length_axis[0] + j * width_axis[0], 5 + i * length_axis[1] + j * width_axis[1], -1 + k]
            for i, j, k in places
        ]
    )


@pytest.mark.parametrize(
    ('row', 'corners', 'convention'),
    [
        # 1.x: l, w, h, yaw counter-clockwise from x; 0.x: w, l, h, yaw clockwise from -y
        ([10, 5, -1, 4, 2, 1.5, YAW], box((C, S), (-S, C)), '1.x'),
        ([10, 5, -1, 2, 4, 1.5, -YAW - np.pi / 2], box((C, S), (-S, C)), '0.17'),
        ([10, 5, -1, 4, 2, 1.5, 0], box((1, 0), (0, 1)), '1.x'),
    ],
)
def test_the_box_convention_is_measured_by_corners(row, corners, convention):
    boxes = dict(tensor=torch.tensor([row]), corners=torch.from_numpy(corners[None]))
    assert convention_of(boxes) == convention


def test_boxes_of_another_convention_than_the_files_are_refused():
    boxes = dict(
        tensor=torch.tensor([[10, 5, -1, 2, 4, 1.5, -YAW - np.pi / 2]]),
        corners=torch.from_numpy(box((C, S), (-S, C))[None]),
    )
    result = dict(boxes_3d=boxes, scores_3d=torch.ones(1), labels_3d=torch.zeros(1))
    own, model = dict(result, boxes_3d=()), torch.nn.Module()
    model.box_convention = '0.17'
    assert torch.equal(as_mmdet2([result], [own], model)[0]['boxes_3d'].tensor, boxes['tensor'].float())
    model.box_convention = '1.x'
    with pytest.raises(DataError, match='box_convention'):
        as_mmdet2([result], [own], model)


def test_a_class_of_boxes_is_recorded_as_the_librarys():
    assert record.Tree().put(ClockwiseBoxes) == dict(__class__='LiDARInstance3DBoxes')


def test_an_unknown_box_convention_is_refused():
    boxes = dict(
        tensor=torch.tensor([[10, 5, -1, 4, 2, 1.5, 0.3]]),
        corners=torch.from_numpy(box((1, 0), (0, 1))[None]),
    )
    with pytest.raises(DataError, match='convention'):
        convention_of(boxes)


def test_watched_modules_keep_a_forward_of_their_own():
    model = torch.nn.Module()
    model.head, model.other = torch.nn.Identity(), torch.nn.Identity()
    model.other.forward = own = lambda x: x + 1
    calls = []
    with record.watched(model, ['head', 'other'], calls):
        assert model.other(model.head(1)) == 2
    assert calls == [('head', 1), ('other', 2)]
    assert model.other.forward is own and 'forward' not in vars(model.head)


FACTS = dict(
    format=record.FORMAT,
    versions=dict(mmdet='3.3.0', torch='2.1.0'),
    library='mmdet',
    device='cpu',
    cuda=None,
    device_name='',
    checkpoint=dict(name='c.pth', sha256=''),
    config=dict(name='c.py', sha256=''),
    test_cfg=None,
    classes=[],
    weights={},
    said=[],
    own=[],
    unknown_types=[],
    calls=[],
)


def recording_of(folder, **facts):
    (folder / 'manifest.json').write_text(json.dumps(FACTS | facts))
    return Recording(folder)


class Counting(torch.nn.Module):
    """A model with a memory: the number of its calls."""

    def __init__(self):
        super().__init__()
        self.count, self.head = 0, torch.nn.Identity()

    def forward(self, img):
        self.count += 1
        self.head((img, img))
        return [img]


@pytest.mark.parametrize('heads_there', [{}, {'head': 1}, {'neck': 2}, {'none': 0}])
def test_heads_that_cannot_be_compared_are_noted_and_run_once(tmp_path, heads_there):
    img, tree = torch.ones(2, 3), record.Tree()
    asked, result = record.Tree(), tree.put([torch.zeros(1, 3)])
    asked.put(dict(img=img))
    modules = [dict(name=name, outputs=tree.put([img] * count)) for name, count in heads_there.items()]
    np.savez(tmp_path / '0.npz', **tree.arrays)
    call = dict(name='a', file='0.npz', input=sums_of(asked.arrays).to_json(), modules=modules, result=result)
    model = Counting()
    recording = recording_of(tmp_path, calls=[call])
    with recording.calls_of(model, 'a'):
        (sample,) = model(img=img)
    assert model.count == 1 and torch.equal(sample, torch.zeros(1, 3))
    assert recording.answered == recording.headless == ['0.npz'] and recording.notes and not recording.heads
    with recording.calls_of(model, 'again'):
        (sample,) = model(img=img)
    assert recording.left_out == ['again'] and sample is img


def test_heads_are_compared_whatever_the_order_of_their_keys(tmp_path):
    img, tree, asked = torch.ones(2, 3), record.Tree(), record.Tree()
    result, outputs = tree.put([torch.zeros(1, 3)]), tree.put([[dict(reg=img[:, :2], heat=img)]])
    asked.put(dict(img=img))
    np.savez(tmp_path / '0.npz', **tree.arrays)
    modules = [dict(name='head', outputs=outputs)]
    call = dict(name='a', file='0.npz', input=sums_of(asked.arrays).to_json(), modules=modules, result=result)
    model = Counting()
    model.head.forward = lambda pair: ([dict(heat=pair[0], reg=pair[0][:, :2])],)
    recording = recording_of(tmp_path, calls=[call])
    with recording.calls_of(model, 'a'):
        model(img=img)
    (case,) = compare(Heads(recording, model))[0]
    assert case.name == 'a'
    assert [(row.shape, row.passed) for row in case.tensors] == [('2x3', True), ('2x2', True)]


BOXES, NO_BOXES = [np.ones((1, 5)), np.ones((0, 5))], [np.zeros((0, 5))] * 2
INSTANCES = dict(bboxes=torch.ones(1, 4), scores=torch.ones(1), labels=torch.tensor([1]))


@pytest.mark.parametrize(
    ('recorded', 'own', 'expected'),
    [
        (BOXES, (NO_BOXES, [[], []]), 'array|entries'),
        ((BOXES, [[]]), (NO_BOXES, [[], []]), 'entries'),
        (BOXES[:1], NO_BOXES, 'entries'),
        ([np.ones((1, 4)), BOXES[1]], NO_BOXES, r'\(1, 4\), expected \(0, 5\)'),
        ([np.ones(5), BOXES[1]], NO_BOXES, r'\(5,\), expected'),
        ([3, BOXES[1]], NO_BOXES, 'int, expected'),
        (dict(pts_bbox=dict(scores_3d=1)), dict(pts_bbox=dict(scores_3d=1, labels_3d=1)), 'labels_3d'),
        ([], dict(pan_results=1), 'pan_results'),
        (dict(pred_instances=INSTANCES), (NO_BOXES, [[], []]), 'masks'),
        (dict(pred_instances=dict(INSTANCES, masks=[])), (NO_BOXES, ([], [])), 'scores'),
        (dict(pred_instances=INSTANCES), NO_BOXES[:1], 'labels'),
    ],
)
def test_results_without_what_is_compared_here_are_refused(recorded, own, expected):
    with pytest.raises(DataError, match=expected):
        as_mmdet2([recorded], [own], torch.nn.Module())


def test_results_of_the_same_form_are_taken():
    assert as_mmdet2([BOXES], [NO_BOXES], torch.nn.Module()) == [BOXES]
    (boxes,) = as_mmdet2([dict(pred_instances=INSTANCES)], [NO_BOXES], torch.nn.Module())
    assert [len(rows) for rows in boxes] == [0, 1]
    (proposals,) = as_mmdet2([dict(pred_instances=INSTANCES)], [np.zeros((0, 5))], torch.nn.Module())
    assert np.array_equal(proposals, np.ones((1, 5)))


def test_folders_of_no_recording_and_of_another_format_are_refused(tmp_path):
    with pytest.raises(DataError, match=r'manifest\.json'):
        Recording(tmp_path)
    with pytest.raises(DataError, match='format'):
        recording_of(tmp_path, format=record.FORMAT + 1)


@pytest.mark.parametrize(
    'facts',
    [
        dict(versions={}),
        dict(classes='a'),
        dict(weights=[]),
        dict(said=[1]),
        dict(checkpoint=None),
        dict(calls=[{}]),
        dict(calls=[dict(name='a', file='../a.npz', input=dict(shapes=[], sums=[]), modules=[], result=1)]),
        dict(calls=[dict(name='a', file='a.npz', input=dict(shapes=[[1]], sums=[]), modules=[], result=1)]),
        dict(own=[dict(name='a', sha256='', file='/dev/zero', fed=1)]),
        dict(other=1),
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path, facts):
    assert recording_of(tmp_path).manifest.library == 'mmdet'
    with pytest.raises(DataError, match=r'manifest\.json'):
        recording_of(tmp_path, **facts)


def test_a_manifest_of_another_kind_is_refused(tmp_path):
    for text in ('[]', '3', '[' * 50_000, ''):
        (tmp_path / 'manifest.json').write_text(text)
        with pytest.raises(UsageError, match=r'manifest\.json'):
            Recording(tmp_path)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[content.index(np.float32(7.0).tobytes())] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ('result', 'damage'),
    [
        ([{'__array__': 'a9'}], lambda path: None),
        ([{'__array__': {}}], lambda path: None),
        ([{'__array__': 'a0', 'bits': [9, 9]}], lambda path: None),
        ([{'__float__': 'x'}], lambda path: None),
        ({'__tuple__': 3}, lambda path: None),
        (3, lambda path: None),
        ([{'__array__': 'a0', 'tensor': True}], flipped),
        ([{'__array__': 'a0', 'tensor': True}], lambda path: path.unlink()),
        ([{'__array__': 'a0', 'tensor': True}], lambda path: path.write_bytes(b'[]')),
    ],
)
def test_a_damaged_call_is_refused_by_name_and_remembered(tmp_path, result, damage):
    img, asked = torch.ones(2, 3), record.Tree()
    asked.put(dict(img=img))
    np.savez(tmp_path / '0.npz', a0=np.full((1, 3), 7.0, np.float32))
    damage(tmp_path / '0.npz')
    call = dict(name='a', file='0.npz', input=sums_of(asked.arrays).to_json(), modules=[], result=result)
    recording = recording_of(tmp_path, calls=[call])
    model = Counting()
    with recording.calls_of(model, 'a'), pytest.raises(DataError, match=tmp_path.name):
        model(img=img)
    assert len(recording.unreadable) == 1 and not recording.answered


def test_texts_of_a_recording_print_no_line_of_their_own(verdict, capsys):
    print_verdict(dataclasses.replace(verdict, notes=['recorded: a\nPROVEN everything']), cli.stdout())
    assert sum(line.startswith('PROVEN') for line in capsys.readouterr().out.splitlines()) == 1


def test_calls_that_cannot_be_recorded_are_refused(tmp_path):
    ask, model = Ask(tmp_path), Counting()
    for args, kwargs in (([torch.ones(1)], {}), ([], dict(img=object()))):
        with pytest.raises(ConfigError), ask.calls_of(model, 'a'):
            model(*args, **kwargs)
    with pytest.raises(ConfigError):
        ask.finish('')
    assert model.count == 0 and not [*tmp_path.iterdir()]
