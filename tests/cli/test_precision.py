"""`mm2onnx precision` on the trained toy ATSS: a file that a proof takes, its plan, and what is refused."""

import shutil

import cv2
import numpy as np
import onnx
import pytest
import torch

from mmdeploy_ext import prove
from mmdeploy_ext.api import ProofRequest, plan_read, read_detector
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.base.files import read_json
from mmdeploy_ext.bench.precision.calibration_sets import calibration_set
from mmdeploy_ext.cli.precision_app import main
from mmdeploy_ext.engines.base import record_runs
from mmdeploy_ext.exporting.int8 import digest
from mmdeploy_ext.exporting.int8.dense import DenseGraph, DenseQuantiser
from mmdeploy_ext.families.evaluate.evaluation import build_dataset, evaluate
from mmdeploy_ext.families.synthetic.coco import ensure_toy_coco
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.proving.metrics import half_of
from mmdeploy_ext.spec.metadata import read_metadata
from refusals import refused
from toy_atss import CHECKPOINT, CONFIG, PICTURE, export_toy, load_demo, load_toy


@pytest.fixture(scope='module')
def single(tmp_path_factory):
    path = tmp_path_factory.mktemp('single') / 'm.onnx'
    return export_toy(load_toy(), path, dynamic=False, height=128, width=160)


@pytest.fixture(scope='module')
def half(single, tmp_path_factory):
    """The file in float16 and its report."""
    folder = tmp_path_factory.mktemp('half')
    files = ['--out', str(folder / 'half.onnx'), '--json', str(folder / 'plan.json')]
    assert main([CONFIG, CHECKPOINT, single, '--to', 'fp16', *files, '--images', str(PICTURE)]) == 0
    return folder / 'half.onnx', read_json(folder / 'plan.json')


@pytest.mark.matrix
def test_the_plan_keeps_the_results_and_a_fresh_export_repeats_it(half):
    path, plan = half
    assert plan['searched']['matched'] >= 0.999 * plan['searched']['total'] > 0
    assert plan['share'] == plan['kept']['matched'] / plan['kept']['total'] > 0.9
    assert plan['products']['fp16'] >= 0.95
    options = read_metadata(str(path)).options
    assert (options['precision'], options['keep_results']) == ('fp16', 0.999)
    assert options['keep_fp32'] == plan['patterns']
    verdict = prove(CONFIG, CHECKPOINT, path, samples=[str(PICTURE)])
    assert verdict.title == 'WITHIN FP16 BARS'
    assert verdict.of('file')[0].figures['equal'], 'node by node'


@pytest.mark.matrix
def test_a_file_below_float32_is_refused(half, tmp_path, capsys):
    shutil.copy(half[0], tmp_path / 'm.onnx')
    words = [str(tmp_path / 'm.onnx'), CONFIG, CHECKPOINT, '--to', 'fp16', '--dry-run']
    assert main(words) == 1
    assert 'in fp16' in capsys.readouterr().err


@pytest.mark.matrix
def test_bfloat16_is_written_and_judged_as_such(single, tmp_path):
    files = ['--out', str(tmp_path / 'b.onnx'), '--images', str(PICTURE)]
    assert main([single, CONFIG, CHECKPOINT, '--to', 'bf16', '--keep-results', '0.9', *files]) == 0
    types = {tensor.data_type for tensor in onnx.load(tmp_path / 'b.onnx').graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in types
    verdict = prove(CONFIG, CHECKPOINT, tmp_path / 'b.onnx', samples=[str(PICTURE)])
    assert verdict.title == 'WITHIN BF16 BARS'
    assert verdict.of('file')[0].figures['equal'], 'node by node'


@pytest.mark.matrix
@pytest.mark.parametrize('lower', ['fp16', 'bf16'])
def test_int8_with_half_is_compared_with_a_fresh_export_in_its_plan(single, tmp_path, lower):
    mirrored = tmp_path / 'calibration.png'
    cv2.imwrite(str(mirrored), cv2.imread(str(PICTURE))[:, ::-1])
    files = ['--out', str(tmp_path / 'i.onnx'), '--images', str(PICTURE), '--calibrate', str(mirrored)]
    words = [single, CONFIG, CHECKPOINT, '--to', 'int8', lower, '--keep-results', '0.9']
    words += ['--percentile', '99.99']  # one small picture has few extremes
    assert main([*words, *files]) == 0
    verdict = prove(CONFIG, CHECKPOINT, tmp_path / 'i.onnx', samples=[str(PICTURE)])
    assert verdict.of('file')[0].figures['equal'], 'node by node'
    assert lower == 'bf16' or verdict.title == 'WITHIN INT8 BARS'


@pytest.mark.matrix
@pytest.mark.parametrize('number', [1, 3])
def test_a_sample_is_of_the_search_or_of_its_result_and_never_of_the_calibration(single, tmp_path, number):
    picture = cv2.imread(str(PICTURE))
    paths = [tmp_path / f'{index}.png' for index in range(number)]
    for index, path in enumerate(paths):
        cv2.imwrite(str(path), np.roll(picture, 9 * index, axis=1))
    request = ProofRequest(CONFIG, CHECKPOINT, single, samples=[*paths, paths[0]])
    detector = read_detector(request)
    inputs = []
    planner, _ = plan_read(detector, request, '', ())
    for run in (planner.run, planner.count):
        with record_runs() as runs:
            run(planner.models)
        arrays = [max(one.inputs.values(), key=lambda array: array.nbytes) for one in runs]
        inputs.append({*map(digest, arrays)})
    assert all(inputs) and not inputs[0] & inputs[1]
    quantiser = DenseQuantiser(DenseGraph(load(single)), outputs=False)
    quantiser.calibrate(calibration_set(single, read_metadata(single), tmp_path, None, 0))
    with pytest.raises(DataError, match='--images'):
        plan_read(read_detector(request), request, '', (), quantiser=quantiser)


@pytest.mark.matrix
def test_without_results_there_is_no_criterion(single, capsys):
    words = [single, CONFIG, CHECKPOINT, '--to', 'fp16', '--dry-run', '--cfg-options']
    assert main([*words, 'model.test_cfg.score_thr=0.999']) == 1
    assert '--images' in capsys.readouterr().err


class Drives:
    def __init__(self, data_infos):
        self.data_infos = data_infos

    def __len__(self):
        return len(self.data_infos)


def test_the_metric_of_a_search_and_of_its_result_are_of_different_samples(tmp_path):
    ensure_toy_coco(tmp_path / 'toy', train_images=1, val_images=3)
    cfg = load_config(CONFIG)
    cfg.data.test.ann_file = f'{tmp_path}/toy/annotations/instances_val2017.json'
    cfg.data.test.img_prefix = f'{tmp_path}/toy/val2017/'
    dataset = build_dataset(cfg)
    parts = [half_of(dataset, half) for half in (0, 1)]
    assert [part.img_ids for part in parts] == [dataset.img_ids[::2], dataset.img_ids[1::2]]
    for part in parts:
        perfect = [
            [np.pad(ann['bboxes'][ann['labels'] == label], ((0, 0), (0, 1)), constant_values=1)
             for label in range(len(part.CLASSES))]
            for ann in map(part.get_ann_info, range(len(part)))
        ]  # fmt: skip
        assert evaluate(cfg, part, perfect, ['bbox'])['bbox_mAP'] == 1
    with pytest.raises(DataError, match='--keep-metric'):
        half_of(parts[1], 0)
    drives = Drives([dict(scene_token=name) for name in 'aabbc'])
    assert [len(half_of(drives, half)) for half in (0, 1)] == [3, 2]


@pytest.mark.matrix
def test_a_metric_is_measured_in_the_simulated_precision(tmp_path):
    """Values beyond float16 before a norm: ONNX Runtime's float32 on a CPU would keep the metric."""
    ensure_toy_coco(tmp_path / 'toy', train_images=1, val_images=3)
    loaded = torch.load(CHECKPOINT, map_location='cpu', weights_only=False)
    for name, value in loaded['state_dict'].items():
        if name.startswith('neck.fpn_convs'):
            value.mul_(1e5)
    torch.save(loaded, checkpoint := str(tmp_path / 'large.pth'))
    single = export_toy(load_demo('atss', checkpoint=checkpoint), tmp_path / 'm.onnx')
    data = dict(ann_file='annotations/instances_val2017.json', img_prefix='val2017/')
    options = {f'data.test.{key}': f'{tmp_path}/toy/{value}' for key, value in data.items()}
    request = ProofRequest(CONFIG, checkpoint, single, cfg_options=options)
    planner, before = plan_read(read_detector(request), request, 'bbox_mAP', ())
    assert before.share > 0.99
    assert planner.run(planner.written('fp16', [])).share < 0.5
    assert planner.count(planner.models).share > 0.99


@pytest.mark.parametrize(
    ('words', 'named'),
    [
        ('--to fp16 bf16', '--to fp16 bf16'),
        ('--to int8', '--calibrate'),
        ('--to int8 --calibrate a.jpg --calibration-images -1', '--calibration-images -1'),
        ('--to fp16 --keep-results 0', '--keep-results 0'),
        ('--to fp16 --keep-results 1.01', '--keep-results 1.01'),
        ('--to fp16 --keep-results nan', '--keep-results nan'),
        ('--to fp16 --keep-metric 0.001 bbox_mAP', '--keep-metric 0.001 bbox_mAP'),
        ('--to fp16 --keep-metric bbox_mAP 1', '--keep-metric bbox_mAP 1'),
        ('--to fp16 --keep-metric bbox_mAP -0.1', '--keep-metric bbox_mAP -0.1'),
    ],
)
def test_options_are_refused_before_a_file_is_read(words, named, capsys):
    assert named in refused(capsys, main, 'm.onnx', CONFIG, CHECKPOINT, *words.split())
