"""`export --for PROGRAM`: the options and limits that it sets, and the proof at the limits of the engine."""

import dataclasses
import json
import shlex

import pytest

from mmdeploy_ext.api import ExportRequest, chosen_options, read_detector
from mmdeploy_ext.base.config import mmdet_config
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.cli import command
from mmdeploy_ext.engines.tensorrt.limits import find_refusals
from mmdeploy_ext.families.detector import read_config, with_size
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.proving.views.table import export_command
from mmdeploy_ext.runtime.detections import candidates_lost, candidates_needed
from mmdeploy_ext.spec.metadata import read_metadata
from mmdeploy_ext.spec.options import LARGEST_K, LIMITS, TARGETS
from toy_atss import CHECKPOINT, CONFIG, PICTURE, REPO

MASKS = str(REPO / 'configs/demo/mask_rcnn_toy.py')
CENTERPOINT = str(REPO / 'projects/configs/Autoware/centerpoint_pillar_toy.py')


def chosen(config, cfg_options=None, **options):
    detector = read_detector(ExportRequest(config, '', cfg_options=cfg_options, options=options))
    return detector, chosen_options(detector, ExportRequest(config, '', options=options))


@pytest.mark.parametrize('whole', ['', 'traced'])
@pytest.mark.parametrize(
    ('config', 'part', 'classes', 'names'),
    [
        ('faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py', 'rpn', 3, ('max_proposals', 'max_candidates')),
        ('retinanet/retinanet_r50_fpn_1x_coco.py', '', 9 * 80, ('max_candidates',)),
    ],
)
def test_candidates_of_a_stock_config_fit_into_the_largest_top_k(config, part, classes, names, whole):
    """`classes`: rows of a cell that the top-k of a level sorts."""
    rows = [-(-800 // stride) * -(-1344 // stride) * classes for stride in (8, 16, 32, 64)]
    rows = [200 * 336 * classes, *rows[:3], 13 * 21 * classes] if part else [*rows, 7 * 11 * classes]
    traced = dict(whole=whole) if whole else {}
    detector, options = chosen(mmdet_config(config), made_for='tensorrt', **traced)
    test_cfg = detector.cfg.model.test_cfg
    nms_pre = (test_cfg[part] if part else test_cfg).nms_pre
    assert sum(min(count, nms_pre) for count in rows) <= LARGEST_K
    assert sum(min(count, nms_pre + 1) for count in rows) > LARGEST_K
    assert {name: options[name] for name in names} == dict.fromkeys(names, LARGEST_K)
    assert options.required_inputs and not options.dynamic
    assert list(detector.lowered.values()) == [(1000, nms_pre)]


@pytest.mark.parametrize(
    ('config', 'cfg_options'),
    [
        ('faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py', {'model.test_cfg.rcnn.nms.type': 'soft_nms'}),
        ('guided_anchoring/ga_rpn_r50_fpn_1x_coco.py', None),
        ('cascade_rpn/crpn_r50_caffe_fpn_1x_coco.py', None),
    ],
)
def test_models_that_take_no_limits_get_none(config, cfg_options):
    detector, options = chosen(mmdet_config(config), cfg_options, made_for='tensorrt')
    assert not any(options[name] for name in LIMITS)
    detector.family.check(detector.cfg, with_size(options, detector.family.preprocess_rule(detector.cfg)))


def test_options_that_the_user_passes_win():
    config, key = mmdet_config('retinanet/retinanet_r50_fpn_1x_coco.py'), 'model.test_cfg.nms_pre'
    typed = dict(made_for='tensorrt', max_candidates=700, required_inputs=False, height=320, width=320)
    detector, options = chosen(config, {key: 1000}, **typed)
    assert {name: options[name] for name in typed} == typed
    assert detector.cfg.model.test_cfg.nms_pre == 1000 and not detector.lowered


@pytest.mark.parametrize(
    ('config', 'target', 'expected'),
    [
        (CONFIG, 'web', dict(input='uint8-nhwc', channels='rgb', required_inputs=True, max_candidates=0)),
        (CONFIG, 'openvino', dict(input='float32', required_inputs=True, max_candidates=0)),
        (CONFIG, 'deepstream', dict(outputs='efficient-nms', required_inputs=False)),
        (CENTERPOINT, 'autoware', dict(contract='autoware')),
        (CENTERPOINT, 'tensorrt', dict(contract='deploy', sparse_form='tables')),
    ],
)
def test_each_program_gets_the_options_that_it_needs(config, target, expected):
    _, options = chosen(config, made_for=target)
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize(('config', 'target'), [(CONFIG, 'autoware'), (CENTERPOINT, 'web')])
def test_a_program_that_does_not_load_the_model_is_refused(config, target):
    with pytest.raises(UsageError, match=f'^--for {target}: '):
        chosen(config, made_for=target)


def test_a_program_whose_outputs_a_model_cannot_have_is_named():
    detector, options = chosen(MASKS, made_for='deepstream')
    kind = kind_of(detector.family)
    kind.build(detector)
    with pytest.raises(UsageError, match=r'^--for deepstream: --outputs efficient-nms: .*masks'):
        kind.check(detector, options)


def test_the_proof_compares_at_the_limit_that_the_file_was_made_with(tmp_path, capsys, monkeypatch):
    engine = dataclasses.replace(TARGETS['tensorrt'], largest_k=40)
    monkeypatch.setitem(TARGETS, 'tensorrt', engine)
    path, key = tmp_path / 'm.onnx', 'model.test_cfg.nms_pre'
    proof = ['--images', str(PICTURE)]
    made = ['export', CONFIG, CHECKPOINT, '--out', str(path), '--shape', '128', '160', '--for', 'tensorrt']
    assert command.main(made) == 0
    (printed,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith('for tensorrt: '))
    assert '--shape 128 160' in printed and f'{key} 8 instead of' in printed
    assert read_metadata(str(path)).postprocess.nms_pre == 8
    assert not find_refusals(load(path), rtx=True)
    assert command.main(['verify', CONFIG, CHECKPOINT, str(path), *proof]) == 0
    assert key in capsys.readouterr().out  # the verdict says what PyTorch computed
    assert command.main(['graph', 'diff', CONFIG, CHECKPOINT, str(path), *proof]) == 0
    one_run = ['--max-iter', '1', '--warmup', '1', '--threads', '1', '--repeat-num', '1']
    records = tmp_path / 'benchmark.json'
    measured = ['benchmark', CONFIG, CHECKPOINT, '--onnx', str(path), *proof, *one_run, '--no-memory']
    assert command.main([*measured, '--json', str(records)]) == 0
    assert len({row['detections_per_image'] for row in json.loads(records.read_text())['contenders']}) == 1
    assert read_config(CONFIG, file=str(path)).lowered.keys() == {key}
    assert not read_config(CONFIG, cfg_options={key: 9}, file=str(path)).lowered


@pytest.mark.parametrize('count', [LARGEST_K, LARGEST_K + 1, 44_045])
def test_the_advice_about_lost_candidates_is_one_that_tensorrt_takes(count):
    options = dict(form='full', max_candidates=1000, made_for='')
    metadata = dataclasses.make_dataclass('Options', ['options'])(options)
    needed = candidates_needed(str(candidates_lost(metadata, count, 'max_candidates')))
    words = shlex.split(export_command(dict(options=options, config='c.py'), 'm.onnx', **needed))
    if count <= LARGEST_K:
        assert words[words.index('--max-candidates') + 1] == str(count)
    else:
        assert words[words.index('--for') + 1] == 'tensorrt' and '--max-candidates' not in words
    metadata.options['made_for'] = 'tensorrt'
    assert bool(candidates_needed(str(candidates_lost(metadata, count, 'max_candidates')))) is (
        count <= LARGEST_K
    )
