"""Recordings of sweeps and drives: a right one proves, each planted fault fails."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch

from marking import in_suite
from mmdeploy_ext.api import ProofRequest, ask_read, prove_read, read_detector
from mmdeploy_ext.proving.drive_run import NEW_SCENE
from mmdeploy_ext.proving.recorded import record
from mmdeploy_ext.proving.recorded.calls import corners_of
from mmdeploy_ext.runtime.detections3d import in_lidar_columns
from proofs import fresh_exports_once, samples_alone
from toy_anchor3d import exported
from toy_centerpoint import sweep
from toy_frames import STREAMPETR


class Recorder:
    """A toy, its file, and what was asked; `record` is the environment of its training."""

    def __init__(self, folder, config, checkpoint, files, frames, samples=()):
        self.folder, self.inputs = folder, samples_alone if samples else contextlib.nullcontext
        self.request = dict(
            config=config, checkpoint=checkpoint, onnx_file=files, samples=samples, frames=frames
        )
        with self.inputs():
            ask_read(*self.read(), folder / 'ask')

    def read(self, **more):
        request = ProofRequest(**self.request, **more)
        return read_detector(request), request

    def record(self, out, ask=None):
        out.mkdir()
        ask = str(ask or self.folder / 'ask')
        words = [self.request['config'], self.request['checkpoint'], '--inputs', ask, '--out', str(out)]
        files = ['--images', *self.request['samples']] if self.request['samples'] else []
        args = record.parser().parse_args([*words, '--device', 'cpu', *files])
        args.cfg_options = {}
        record.record(args, str(out))
        return out

    def verdict(self, recorded):
        with self.inputs():
            return prove_read(*self.read(recorded=recorded))


@pytest.fixture(scope='module', autouse=True)
def exports():
    with fresh_exports_once():
        yield


@pytest.fixture(scope='module')
def of_sweeps(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sweeps')
    _, graphs, config, checkpoint = exported('nuscenes')
    paths = []
    for seed in (1, 2):
        paths.append(str(folder / f'{seed}.bin'))
        sweep(seed, 500).tofile(paths[-1])
    return Recorder(folder, config, checkpoint, str(graphs), 2, paths)


@pytest.fixture(scope='module')
def of_drive(tmp_path_factory):
    folder = tmp_path_factory.mktemp('drive')
    detector = STREAMPETR.load(folder)
    STREAMPETR.export(detector, folder)
    return Recorder(folder, STREAMPETR.config, str(folder / 'toy.pth'), str(folder / 'streampetr'), 6)


@pytest.fixture(scope='module')
def recorded(of_sweeps, of_drive):
    toys = dict(sweeps=of_sweeps, drive=of_drive)
    return {name: (toy, toy.record(toy.folder / 'rec')) for name, toy in toys.items()}


@pytest.mark.parametrize('name', ['sweeps', 'drive'])
def test_recorded_sequences_prove_a_file(recorded, name):
    toy, folder = recorded[name]
    verdict = toy.verdict(folder)
    assert verdict.proven, verdict.failures
    assert verdict.subject['recorded'].startswith('mmdet3d 1.0.0rc6 with torch')


# ---- faults in what was recorded


def changed_boxes(folder, change):
    """Write boxes (n, 9), scores and labels that `change` returns, with the corners of the boxes."""
    manifest = json.loads((folder / 'manifest.json').read_text())
    for call in manifest['calls']:
        path = folder / call['file']
        with np.load(path) as file:
            arrays = dict(file)
        (result,) = call['result']
        result = result['pts_bbox']
        keys = [result[name]['__array__'] for name in ('scores_3d', 'labels_3d')]
        boxes = result['boxes_3d']
        keys.insert(0, boxes['tensor']['__array__'])
        values = change(*(arrays[key] for key in keys))
        arrays.update(zip(keys, values, strict=True))
        if 'corners' in boxes:
            arrays[boxes['corners']['__array__']] = corners_of(values[0]).astype(np.float32)
        np.savez(path, **arrays)


def column(index, value):
    def change(boxes, scores, labels):
        boxes[:, index] += value if not callable(value) else value(boxes)
        return boxes, scores, labels

    return change


BOXES = {
    'classes shifted': lambda boxes, scores, labels: (boxes, scores, (labels + 1) % 3),
    'yaw by pi / 2': column(6, np.pi / 2),
    'z of the center': column(2, lambda boxes: boxes[:, 5] / 2),
    'x half a metre larger': column(0, 0.5),
    'velocity 1 m/s larger': column(7, 1.0),
    'scores lower': lambda boxes, scores, labels: (boxes, scores - 0.05, labels),
    'columns of 0.x': lambda boxes, *others: (in_lidar_columns(boxes), *others),
}


def changed_manifest(folder, change):
    path = folder / 'manifest.json'
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def other_order(folder):
    def change(manifest):
        inputs = [call['input'] for call in manifest['calls']]
        for call, entry in zip(manifest['calls'], [*inputs[1:], inputs[0]], strict=True):
            call['input'] = entry

    changed_manifest(folder, change)


def changed_heads(folder):
    for path in folder.glob('0*.npz'):
        with np.load(path) as file:
            arrays = {key: value + 0.05 if value.ndim > 3 else value for key, value in file.items()}
        np.savez(path, **arrays)


def changed_points(change):
    def of(folder):
        for path in folder.glob('own_*.npz'):
            with np.load(path) as file:
                arrays = {key: change(value) if value.ndim == 2 else value for key, value in file.items()}
            np.savez(path, **arrays)

    return of


IN_RECORDING = {
    'results of another input': other_order,
    'outputs of the heads': changed_heads,
    **{name: lambda folder, change=change: changed_boxes(folder, change) for name, change in BOXES.items()},
}
OF_PREPARATION = {
    'own sweeps with another intensity': changed_points(lambda points: points * [1, 1, 1, 255, 1]),
    'own sweeps with other columns': changed_points(lambda points: points[:, [0, 1, 2, 4, 3]]),
    'own sweeps in another order': changed_points(lambda points: points[::-1]),
    'own sweeps with fewer points': changed_points(lambda points: points[5:]),
}


@pytest.mark.parametrize(
    ('name', 'fault'),
    in_suite(
        [
            *(('sweeps', fault) for fault in (IN_RECORDING | OF_PREPARATION)),
            *(('drive', fault) for fault in IN_RECORDING),
        ],
        ('sweeps', 'z of the center'),
        ('sweeps', 'own sweeps with another intensity'),
        ('drive', 'classes shifted'),
    ),
)
def test_a_recorded_fault_fails(recorded, tmp_path, name, fault):
    toy, folder = recorded[name]
    folder = shutil.copytree(folder, tmp_path / 'rec')
    (IN_RECORDING | OF_PREPARATION)[fault](folder)
    assert not toy.verdict(folder).passed


# ---- faults of the environment that records


def token(change):
    def of(arguments):
        meta = arguments['img_metas'][0][0]
        meta['scene_token'] = change(meta['scene_token'])

    return of


def argument(name, change):
    def of(arguments):
        arguments[name][0] = change(arguments[name][0])

    return of


count, seen = iter(range(1000)), []


def not_emptied_at_the_end(name):
    seen.append(name if name != NEW_SCENE else seen[-1])
    return seen[-1]


THERE = {
    ('sweeps', 'intensity'): argument(
        'points', lambda points: [points[0] * points[0].new_tensor([1, 1, 1, 50, 1])]
    ),
    ('drive', 'memory not emptied'): token(lambda _: 'one'),
    ('drive', 'memory not kept'): token(lambda _: str(next(count))),
    ('drive', 'memory not emptied at the end'): token(not_emptied_at_the_end),
    ('drive', 'cameras in another order'): argument('img', lambda images: images.flip(1)),
    ('drive', 'poses not used'): argument('ego_pose', lambda poses: [torch.eye(4) for _ in poses]),
}


@pytest.mark.parametrize(
    ('name', 'fault'),
    in_suite(THERE, ('drive', 'memory not emptied'), ('drive', 'memory not emptied at the end')),
)
def test_a_fault_of_the_other_environment_fails(recorded, tmp_path, monkeypatch, name, fault):
    toy, _ = recorded[name]
    run = record.Mmcv1.run

    def faulty(side, arguments):
        THERE[name, fault](arguments)
        return run(side, arguments)

    monkeypatch.setattr(record.Mmcv1, 'run', faulty)
    assert not toy.verdict(toy.record(tmp_path / 'rec')).passed


@pytest.mark.matrix
def test_frames_in_another_order_fail(recorded, tmp_path):
    toy, _ = recorded['drive']
    ask = shutil.copytree(toy.folder / 'ask', tmp_path / 'ask')
    asked = json.loads((ask / 'ask.json').read_text())
    asked['calls'] = asked['calls'][1::-1] + asked['calls'][2:]
    (ask / 'ask.json').write_text(json.dumps(asked))
    assert not toy.verdict(toy.record(tmp_path / 'rec', ask)).passed
