"""Checkpoints that are missing, damaged, dangerous or of another model; and real ones, which load."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.weights.checkpoint import load_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
TOY = REPOSITORY / 'demo/checkpoints/atss_toy.pth'
YUNET = '../shared/data/weights/yunet_mmdet/yunet_n.pth'


class RunsCode:
    """Pickled, this is a call."""

    def __reduce__(self):
        return print, ('a checkpoint ran code',)


class RunsShell:
    """Pickled, this is a command."""

    def __reduce__(self):
        return os.system, ('echo a checkpoint ran code',)


def truncated(path):
    path.write_bytes(TOY.read_bytes()[:100_000])


def damaged(path):
    content = bytearray(TOY.read_bytes())
    with zipfile.ZipFile(TOY) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith('/data.pkl'))
    end = entry.header_offset + entry.file_size
    content[end - 1000 : end] = bytes(1000)
    path.write_bytes(content)


def nested_code(path):
    torch.save(dict(state_dict=torch.load(TOY)['state_dict'], meta=dict(hooks=[RunsCode()])), path)


def other_architecture(path):
    weights = {f'roi_head.fc{index}.weight': torch.ones(1) for index in range(12)}
    kept = {key: value for key, value in torch.load(TOY)['state_dict'].items() if 'bbox_head' not in key}
    torch.save(dict(state_dict={**weights, **kept}), path)


def other_classes(path):
    weights = torch.load(TOY)['state_dict']
    weights['bbox_head.atss_cls.weight'] = torch.ones(80, 64, 3, 3)
    torch.save(dict(state_dict=weights), path)


NOT_A_CHECKPOINT = 'is not a PyTorch checkpoint, or is truncated or damaged'
IS_OTHER = 'is not a PyTorch checkpoint: it'
WOULD_RUN = ('which would run code on loading', 'expected tensors and plain values')
CASES = {
    'missing': (lambda path: None, ['no such checkpoint file']),
    'a folder': (Path.mkdir, ['is a folder; give the file of the checkpoint']),
    'zero bytes': (Path.touch, [f'{IS_OTHER} is empty']),
    'truncated': (truncated, [NOT_A_CHECKPOINT]),
    'damaged inside': (damaged, [NOT_A_CHECKPOINT]),
    'a text': (lambda path: path.write_text('model = dict()\n'), [NOT_A_CHECKPOINT]),
    'a picture': (
        lambda path: shutil.copy(REPOSITORY / 'demo/toy.jpg', path),
        [f'{IS_OTHER} is a JPEG picture'],
    ),
    'an ONNX file': (
        lambda path: shutil.copy(REPOSITORY / 'demo/atss_toy.onnx', path),
        [f'{IS_OTHER} is an ONNX file, by its first bytes'],
    ),
    'a pointer': (
        lambda path: path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n'),
        [f'{IS_OTHER} is a pointer of Git LFS; `git lfs pull` brings the file itself'],
    ),
    'another zip': (lambda path: np.savez(path.open('wb'), a=np.ones(3)), [NOT_A_CHECKPOINT]),
    'a list': (lambda path: torch.save([1, 2], path), ['got a list', 'expected a state dict']),
    'no weights': (lambda path: torch.save(dict(epoch=3), path), ["keys ['epoch']", 'expected a state dict']),
    'code in meta': (nested_code, ['print', *WOULD_RUN]),
    'a plain pickle of code': (
        lambda path: path.write_bytes(pickle.dumps(RunsCode(), protocol=2)),
        ['print', *WOULD_RUN],
    ),
    'a newer pickle of code': (
        lambda path: path.write_bytes(pickle.dumps(RunsCode(), protocol=5)),
        [NOT_A_CHECKPOINT],
    ),
    'code of the system': (
        lambda path: path.write_bytes(pickle.dumps(RunsShell(), protocol=2)),
        ['posix.system', *WOULD_RUN],
    ),
    'another architecture': (
        other_architecture,
        [
            'does not fit the model',
            'missing keys 23 (bbox_head.cls_convs.0.conv.weight, ',
            'and 13 more',
            'unexpected keys 12 (roi_head.fc0.weight, ',
            'roi_head.fc9.weight ... and 2 more',
            'Use the config that this checkpoint was trained with',
        ],
    ),
    'other classes': (
        other_classes,
        ['bbox_head.atss_cls.weight: (80, 64, 3, 3) in the file, (6, 64, 3, 3) in the model'],
    ),
}


@pytest.mark.parametrize(('make', 'words'), CASES.values(), ids=CASES)
def test_a_checkpoint_that_cannot_be_used_is_refused_by_name(make, words, bench):
    path = bench.folder / 'weights.pth'
    make(path)
    assert bench.refuses('export', 'weights.pth: ', *words, checkpoint=path).out == ''  # no code ran


def test_a_checkpoint_without_permission_is_refused(public_folder, without_privileges):
    path = public_folder / 'weights.pth'
    shutil.copy(TOY, path)
    path.chmod(0)
    with without_privileges(), pytest.raises(CheckpointError, match=r'weights.pth.*\(Perm'):
        load_checkpoint(path)


def test_a_training_checkpoint_with_numpy_values_in_meta_exports(bench):
    path, content = bench.folder / 'epoch_3.pth', torch.load(TOY)
    content['meta'].update(
        best=np.float64(0.5),
        loss=np.float32(0.25),
        epoch=np.int64(3),
        done=np.bool_(True),
        ap=np.arange(3.0),
        names=np.array(['a', 'b']),
        mixed=np.array([None, 'x'], dtype=object),
    )
    weights = content['state_dict'].values()
    content['optimizer'] = torch.optim.SGD([torch.nn.Parameter(next(iter(weights)))], lr=0.1).state_dict()
    torch.save(content, path)
    done = bench.call('export', checkpoint=path, more='--shape 128')
    assert (done.status, done.err) == (0, '')
    assert (bench.out / 'm.onnx').stat().st_size > 1_000_000


@pytest.mark.parametrize('legacy', [False, True])
def test_both_of_torchs_file_formats_load(legacy, tmp_path):
    weights = torch.load(TOY)['state_dict']
    torch.save(weights, tmp_path / 'bare.pth', _use_new_zipfile_serialization=not legacy)
    loaded = load_checkpoint(tmp_path / 'bare.pth')
    assert loaded.meta == {} and loaded.state_dict.keys() == weights.keys()
    assert all(torch.equal(loaded.state_dict[key], weights[key]) for key in weights)


def test_a_checkpoint_of_mmdet_2_24_loads():
    if not (REPOSITORY / YUNET).is_file():
        pytest.skip(f'{YUNET} not found')
    loaded = load_checkpoint(REPOSITORY / YUNET)
    assert loaded.meta['mmdet_version'].startswith('2.24') and 'optimizer' not in loaded.state_dict
    assert len(loaded.state_dict) > 50 and all(map(torch.is_tensor, loaded.state_dict.values()))
