"""The OpenMMLab test loop over both engines, in real processes, on a small part of the generated set."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from mmcv import Config

from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.dump import list_samples, load_dump
from mmdeploy_ext.base.files import read_json
from mmdeploy_ext.cli import test_app
from mmdeploy_ext.families.base import DETECTOR, find_family
from mmdeploy_ext.families.evaluate.backend_config import graph_options, read_settings
from rank_processes import run_ranks
from toy_atss import CHECKPOINT, CONFIG, REPO

PTH, ONNX = (CONFIG.replace('.py', f'_{name}.py') for name in ('pth', 'onnx'))
SAMPLES = 5


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    from mmdeploy_ext.families.synthetic.coco import ensure_toy_coco

    root = tmp_path_factory.mktemp('data') / 'toy'
    ensure_toy_coco(root, train_images=1, val_images=SAMPLES)
    return [
        f'data.test.ann_file={root}/annotations/instances_val2017.json',
        f'data.test.img_prefix={root}/val2017/',
        'data.workers_per_gpu=0',
    ]


def evaluate(config, work_dir, data, *words, metrics='bbox'):
    """Run the test loop in this process; return its exit status."""
    words = [config, CHECKPOINT, *words, '--work-dir', str(work_dir)]
    words += [f'--eval={metrics}'] if metrics else []
    return test_app.main([*words, '--cfg-options', *data])


@pytest.fixture(scope='module')
def pth_run(data, tmp_path_factory):
    """One PyTorch run with a dump, in this process."""
    work_dir = tmp_path_factory.mktemp('run') / 'atss_toy'
    assert evaluate(PTH, work_dir, data, '--out', str(work_dir / 'pth.pkl')) == 0
    return work_dir


@pytest.fixture(scope='module')
def onnx_run(pth_run, data, tmp_path_factory):
    """A copy of the PyTorch run's folder, with the file that the loop exports."""
    work_dir = shutil.copytree(pth_run, tmp_path_factory.mktemp('onnx') / 'atss_toy')
    words = ['--out', str(work_dir / 'r.pkl'), '--format-only', '--show-dir', str(work_dir / 'shown')]
    assert evaluate(ONNX, work_dir, data, *words, metrics='') == 0
    return work_dir


@pytest.fixture
def work_dir(onnx_run, tmp_path):
    """A copy of the folder of both runs, for one test to spoil."""
    return shutil.copytree(onnx_run, tmp_path / 'atss_toy')


def metrics(folder, name):
    return read_json(folder / f'metrics_{name}.json')['metrics']


def test_onnx_metrics_equal_pytorch_metrics_and_pytorch_does_not_run(work_dir, data, monkeypatch, capsys):
    from mmdet.models import ATSS

    from mmdeploy_ext.families.evaluate.detector import BackendDetector

    def refuse(*_, **__):
        raise AssertionError('PyTorch ran during the ONNX evaluation')

    def guarded(self, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(ATSS, 'extract_feat', refuse)
            return original(self, *args, **kwargs)

    original = BackendDetector.run
    monkeypatch.setattr(BackendDetector, 'run', guarded)
    assert evaluate(ONNX, work_dir, data) == 0
    out = capsys.readouterr().out
    reference, candidate = metrics(work_dir, 'pth'), metrics(work_dir, 'onnx')
    assert reference.keys() == candidate.keys()
    assert reference['bbox_mAP'] > 0.3
    assert all(abs(reference[key] - candidate[key]) <= 0.0005 for key in reference)
    assert out.count('agrees') == 4, 'the four dumped samples are compared'
    assert 'up to date' in out


def test_pth_results_equal_mmdet_own_test_loop(pth_run, data):
    """The tensor boundary and our loop change nothing: mmdet's detector in its own gives the same boxes."""
    from mmcv.parallel import MMDataParallel
    from mmdet.apis import single_gpu_test

    from mmdeploy_ext.base.config import load_config
    from mmdeploy_ext.cli.options import parse_cfg_options
    from mmdeploy_ext.families.evaluate import evaluation
    from toy_atss import load_toy

    cfg = load_config(CONFIG, parse_cfg_options(data))
    loader = evaluation.build_loader(evaluation.build_dataset(cfg), range(SAMPLES))
    expected = single_gpu_test(MMDataParallel(load_toy().model, device_ids=[-1]), loader)
    with open(pth_run / 'pth.pkl', 'rb') as stream:
        results = pickle.load(stream)
    for left, right in zip(expected, results, strict=True):
        for a, b in zip(left, right, strict=True):
            assert a.shape == b.shape
            assert np.allclose(a[:, :4], b[:, :4], atol=1e-3)
            assert np.allclose(a[:, 4], b[:, 4], rtol=0, atol=1e-4)


def test_dump_holds_every_named_tensor_of_the_first_four_samples(pth_run):
    samples = list_samples(pth_run / 'dump')
    assert [sample.name for sample in samples] == [f'{index:06d}' for index in range(4)]
    tensors, manifest = load_dump(samples[0])
    names = {f'{kind}_{level}' for kind in ('cls_score', 'bbox_pred', 'centerness') for level in range(5)}
    assert tensors.keys() == names | {'input', 'img_shape', 'scale_factor', 'dets', 'labels'}
    entry = manifest['tensors']['cls_score_0']
    assert entry['file'] == 'cls_score_0_' + 'x'.join(map(str, entry['shape'])) + '.bin'
    assert {'dtype', 'shape', 'sha256', 'meaning'} <= entry.keys()
    assert manifest['checkpoint_sha256'] == read_json(pth_run / 'metrics_pth.json')['checkpoint_sha256']


def test_results_are_drawn_and_written_in_the_format_of_the_data_set(onnx_run):
    pictures, results = list((onnx_run / 'shown').iterdir()), read_json(onnx_run / 'results.bbox.json')
    assert len(pictures) == len({entry['image_id'] for entry in results}) == SAMPLES


def test_an_engine_that_leaves_the_dump_is_not_evaluated(work_dir, data, capsys):
    sample = list_samples(work_dir / 'dump')[0]
    manifest = read_json(sample / 'manifest.json')
    entry = manifest['tensors']['dets']
    array = np.fromfile(sample / entry['file'], np.float32).reshape(entry['shape'])
    array[..., :4] += 3
    array.tofile(sample / entry['file'])
    entry['sha256'] = hashlib.sha256(array.tobytes()).hexdigest()
    (sample / 'manifest.json').write_text(json.dumps(manifest))
    assert evaluate(ONNX, work_dir, data) == 1
    assert 'NOT PROVEN' in capsys.readouterr().out
    assert not (work_dir / 'metrics_onnx.json').exists()


def test_a_stale_file_is_exported_again(work_dir, data, capsys):
    changed = [*data, 'model.test_cfg.score_thr=0.2', 'backend_config.check_dump=False']
    assert evaluate(ONNX, work_dir, changed, '--out', str(work_dir / 'r.pkl'), metrics='') == 0
    assert 'stale: the config changed' in capsys.readouterr().out


@pytest.mark.matrix
@pytest.mark.parametrize(('config', 'name'), [(PTH, 'pth'), (ONNX, 'onnx')])
def test_two_processes_give_the_metrics_of_one(work_dir, data, tmp_path, config, name):
    alone = metrics(work_dir, 'pth')
    words = ['--eval=bbox', '--work-dir', str(work_dir), '--cfg-options', *data]
    by_hand = ['tools/test.py', config, CHECKPOINT, '--launcher', 'pytorch', *words]
    assert [code for code, *_ in run_ranks(tmp_path, [by_hand, by_hand])] == [0, 0]
    assert read_json(work_dir / f'metrics_{name}.json')['processes'] == 2
    assert metrics(work_dir, name) == alone


def test_the_command_line_chooses_the_engine_over_the_config(work_dir, data, capsys):
    pth_metrics, exported = (work_dir / 'metrics_pth.json').read_text(), work_dir / 'atss_toy_full.onnx'
    existing = exported.rename(work_dir / 'mine.onnx')
    assert evaluate(CONFIG, work_dir, data, '--onnx', str(existing)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'engine: ONNX Runtime, file: {existing}' and not exported.exists()
    assert lines[-1].endswith(f'bbox_mAP {metrics(work_dir, "onnx")["bbox_mAP"]:.4f}')
    assert (work_dir / 'metrics_pth.json').read_text() == pth_metrics

    content, changed = existing.read_bytes(), [*data, 'model.test_cfg.score_thr=0.2']
    assert evaluate(CONFIG, work_dir, changed, '--onnx', str(existing)) == 1
    assert 'mine.onnx: is stale' in capsys.readouterr().err
    assert existing.read_bytes() == content, 'a file that the user names is never replaced'

    (work_dir / 'metrics_pth.json').unlink()
    assert evaluate(ONNX, work_dir, data, '--torch') == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('engine: PyTorch') and lines[-1].startswith('PyTorch (')
    assert metrics(work_dir, 'pth') == json.loads(pth_metrics)['metrics']


@pytest.mark.parametrize(
    ('script', 'option'), [('dist_test_pth.sh', '--torch'), ('dist_test_onnx.sh', '--onnx')]
)
@pytest.mark.parametrize('processes', [1, 2])
def test_the_scripts_run_the_engine_of_their_name(script, option, processes):
    command = ['bash', str(REPO / 'tools' / script), 'c.py', 'c.pth', str(processes), '--eval', 'bbox']
    environment = dict(os.environ, PYTHON='echo', PORT='29500')
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.split()
    launcher = 'none' if processes == 1 else 'pytorch'
    assert words[-7:] == ['c.py', 'c.pth', option, '--launcher', launcher, '--eval', 'bbox']


def test_metrics_that_differ_end_with_status_1(work_dir, data, capsys):
    path = work_dir / 'metrics_pth.json'
    entry = read_json(path)
    entry['metrics']['bbox_mAP'] += 0.1
    path.write_text(json.dumps(entry))
    assert evaluate(ONNX, work_dir, [*data, 'backend_config.check_dump=False']) == 1
    assert 'DIFFERS' in (out := capsys.readouterr().out) and 'NOT PROVEN' in out


@pytest.mark.matrix
@pytest.mark.parametrize('form', ['decode', 'raw'])
def test_forms_without_post_processing_give_the_same_metrics(work_dir, data, form):
    assert evaluate(ONNX, work_dir, [*data, f'backend_config.postprocess={form}']) == 0
    assert metrics(work_dir, 'onnx') == metrics(work_dir, 'pth')
    assert (work_dir / f'atss_toy_{form}.onnx').is_file()


def test_options_of_the_graph_in_a_config_are_taken():
    options = dict(opset_version=13, postprocess='raw', precision='fp16', exporter='torchscript')
    cfg = load_config(ONNX, {f'backend_config.{name}': value for name, value in options.items()})
    family = find_family(cfg, DETECTOR)
    chosen = graph_options(cfg, read_settings(cfg, family, 'samples'), family)
    assert (chosen.opset, chosen.form, chosen.precision) == (13, 'raw', 'fp16')
    for settings, expected in (
        (dict(shape=(96, 160), precision='fp16', keep_fp32='a*'), (96, 160, False, ('a*',))),
        (dict(shape=96, dynamic=True), (96, 96, True, ())),
        ({}, (0, 0, True, ())),
    ):
        chosen = graph_options(cfg, settings, family)
        assert (chosen.height, chosen.width, chosen.dynamic, chosen.keep_fp32) == expected


def test_a_process_takes_its_own_device_and_share_of_the_cores(monkeypatch):
    for name, value in dict(is_available=True, device_count=2).items():
        monkeypatch.setattr(f'torch.cuda.{name}', lambda value=value: value)
    monkeypatch.setenv('LOCAL_RANK', '3')
    assert [test_app.resolve_device(device) for device in ('auto', 'cuda:0')] == ['cuda:1', 'cuda:0']
    monkeypatch.setattr('os.sched_getaffinity', lambda _: set(range(7)))
    for processes, threads in ((2, 3), (9, 1)):
        monkeypatch.setenv('LOCAL_WORLD_SIZE', str(processes))
        assert test_app.threads_per_process() == threads


def test_metrics_are_of_a_data_set_and_its_annotations_and_not_of_its_pipeline():
    def digest(**settings):
        cfg = Config(dict(data=dict(test=dict(type='CocoDataset', pipeline=[], ann_file='a') | settings)))
        return test_app.run_facts(SimpleNamespace(model_classes=[], cfg=cfg))['dataset_sha256']

    assert digest() == digest(pipeline=[1]) != digest(ann_file='b')
