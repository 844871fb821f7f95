"""float16 of every trained toy: cosine of every output, and the metric through the loop of dist_test_onnx.sh.

Prints the rows of the table in docs/engines.md (`-s`).
"""

from pathlib import Path

import pytest

import toy_nuscenes
from marking import needs_driving
from mmdeploy_ext.base.files import read_json
from mmdeploy_ext.cli import test_app, verify_app
from mmdeploy_ext.families.synthetic.coco import ensure_toy_coco
from mmdeploy_ext.spec.results import HALF, MASKS, METRIC
from verdicts import cases_of, sequence_of

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(3600)]
REPO = Path(__file__).resolve().parents[2]
IMAGES = {'atss': 'bbox', 'rtdetr': 'bbox', 'solov2': 'segm', 'decoupled_solo': 'segm'}
STREAMS = {'stream_petr': 'StreamPETR', 'centerpoint': 'BEVFusion'}
NAMES = dict(bbox='bbox_mAP', segm='segm_mAP')
FP16 = 'backend_config.precision=fp16'


def register():
    import mmdeploy_ext.families.mmdet3d_plugin
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'toy'
    ensure_toy_coco(root)
    parts = dict(ann_file='annotations/instances_val2017.json', img_prefix='val2017/')
    return root, [f'data.test.{key}={root}/{part}' for key, part in parts.items()]


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = toy_nuscenes.write(tmp_path_factory.mktemp('data'))
    return [f'data.test.data_root={root}/', 'data.workers_per_gpu=0'], root


def evaluate(config, checkpoint, metric, folder, *options):
    """Run the loop; returns its metrics. Its exit status tells of AP by size too, of a few objects here."""
    words = [config, checkpoint, '--eval', metric, '--work-dir', str(folder), '--cfg-options', *options]
    assert test_app.main(words) in (0, 1)
    name = 'pth' if config.endswith('_pth.py') else 'onnx'
    return read_json(folder / f'metrics_{name}.json')['metrics']


def prove(config, checkpoint, path, folder, *options):
    """Return the verdict of verify.py as JSON; within the bars or the test fails."""
    register()
    report = folder / 'verdict.json'
    assert verify_app.main([config, checkpoint, str(path), '--json', str(report), *options]) == 0
    verdict = read_json(report)
    assert verdict['verdict'] == 'within fp16 bars'
    rows = [row for case in cases_of(verdict) for row in case.tensors if row.cosine is not None]
    worst = min(row.cosine for row in rows if not row.tensor.startswith(MASKS))
    assert worst >= HALF.cosine
    found = vars(sequence_of(verdict)[-1]) if sequence_of(verdict) else verdict['summary']
    near = found.get('outside', 0)  # pairs whose size, yaw or velocity differs by more than 0.01
    return f'{worst:.6f} | {found["matched"] + near} of {found["reference"]}, {near} of them near'


def judge(name, metric, before, plain, rounded, proof):
    """Print the row, and hold the metric to its bar."""
    values = [run[metric] for run in (before, plain, rounded)]
    print(f'\n| {name} | {proof} | {metric} | ' + ' | '.join(f'{value:.4f}' for value in values) + ' |')
    assert max(abs(value - values[0]) for value in values) <= METRIC


@pytest.mark.parametrize('name', IMAGES)
def test_float16_of_an_image_model_keeps_its_metric(name, pictures, tmp_path):
    (root, data), kind = pictures, IMAGES[name]
    stem, checkpoint = REPO / f'configs/demo/{name}_toy', str(REPO / f'demo/checkpoints/{name}_toy.pth')
    before = evaluate(f'{stem}_pth.py', checkpoint, kind, tmp_path, *data)
    onnx = f'{stem}_onnx.py'
    file = tmp_path / 'model.onnx'
    given = [*data, FP16, f'backend_config.onnx_file={file}']
    plain = evaluate(onnx, checkpoint, kind, tmp_path, *given)
    rounded = evaluate(onnx, checkpoint, kind, tmp_path, *given, 'backend_config.round_fp16=True')
    chosen = sorted((root / 'val2017').iterdir())[:4]
    proof = prove(f'{stem}.py', checkpoint, file, tmp_path, '--images', *map(str, chosen))
    judge(name, NAMES[kind], before, plain, rounded, proof)


@pytest.mark.parametrize('name', [pytest.param('stream_petr', marks=needs_driving), 'centerpoint'])
def test_float16_of_a_model_of_frames_keeps_its_metric(name, scenes, tmp_path):
    options, root = scenes
    middle = '2d_temporal' if name == 'stream_petr' else ''
    data = [*options, f'data.test.ann_file={root}/toy_nuscenes{middle}_infos_val.pkl']
    stem = REPO / f'projects/configs/{STREAMS[name]}/{name}_toy'
    checkpoint = str(REPO / f'demo/checkpoints/{name}_toy.pth')
    before = evaluate(f'{stem}_pth.py', checkpoint, 'bbox', tmp_path, *data)
    onnx, folder = f'{stem}_onnx.py', tmp_path / 'files'
    given = [*data, FP16, f'backend_config.onnx_file={folder}', 'backend_config.check_dump=False']
    plain = evaluate(onnx, checkpoint, 'bbox', tmp_path, *given)
    rounded = evaluate(onnx, checkpoint, 'bbox', tmp_path, *given, 'backend_config.round_fp16=True')
    proof = prove(f'{stem}.py', checkpoint, folder, tmp_path, '--frames', '8', '--cfg-options', *data)
    metric = next(key for key in before if key.endswith('NDS'))
    judge(name, metric, before, plain, rounded, proof)
