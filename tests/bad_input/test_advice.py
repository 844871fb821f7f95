"""What a message says to type works when it is typed; what is done says that it is done."""

import json
import shlex
import time
import types
from pathlib import Path

import onnx
import pytest
import torch
from mmcv.ops import batched_nms

import metadata_fuzz as fuzz
import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.cli import graph_app, info_app, options, run_app
from mmdeploy_ext.compat import doctor
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.config import load_config, read_config, refused_by_name
from mmdeploy_ext.core.errors import ConfigError, Mm2OnnxError
from mmdeploy_ext.core.unregistered import unregistered
from mmdeploy_ext.exporting.postprocess.suppression import Suppression, nms_config
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.corner.graphs import suppression as corner_suppression
from mmdeploy_ext.families.parts.detector_parts import test_cfg_of as settings_of
from mmdeploy_ext.families.query import supported_parts
from mmdeploy_ext.families.query.postprocess import suppression_of as query_suppression
from mmdeploy_ext.proving.provenance import refuse_other_settings
from mmdeploy_ext.weights.convert.conversion import model_tensors
from mmdeploy_ext.weights.convert.rtdetr import Source, convert

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / 'demo/atss_toy.onnx'
DENSE, MASKS, PANOPTIC = (
    ROOT / f'configs/demo/{name}_toy.py' for name in ('atss', 'mask_rcnn', 'panoptic_fpn')
)
NMS = dict(type='nms', iou_threshold=0.5)
LIMITS = dict(score_thr=0.1, nms_pre=100, max_per_img=10)
RPN = dict(nms=NMS, nms_pre=100, max_per_img=10, min_bbox_size=0)
RCNN = dict(nms=NMS, score_thr=0.1, max_per_img=10, mask_thr_binary=0.5)


def with_test_cfg(base, test_cfg, beside=False):
    """Return a config with this `test_cfg`, in the model or beside it."""
    values = read_config(str(base))._cfg_dict.to_dict()
    values['model'].pop('test_cfg')
    (values if beside else values['model'])['test_cfg'] = test_cfg
    return '\n'.join(f'{key} = {value!r}' for key, value in values.items())


def with_data(data):
    return f"_base_ = '{DENSE}'\ndata = dict(_delete_=True, **{data})\n"


def check(cfg):
    family = find_family(cfg)
    family.check(cfg, family.choose(height=256, width=256, opset=17))


def check_pipeline(cfg):
    find_family(cfg).preprocess_rule(cfg)


def check_corners(cfg):
    with refused_by_name(cfg):
        corner_suppression(settings_of(cfg))


def check_co_detr(cfg):
    query_head = types.SimpleNamespace(test_cfg=cfg.model.test_cfg[0], num_query=9)
    with refused_by_name(cfg):
        supported_parts.check_co_detr(cfg.model, cfg.model.test_cfg)
        query_suppression(query_head)


def check_classes(cfg):
    tensors = model_tensors(load_config(str(ROOT / 'configs/demo/rtdetr_toy.py')))
    convert(Source(tensors, 'plain weights'), cfg)


def check_types(cfg):
    if message := unregistered(cfg):
        raise ConfigError(message)


def check_overrides(cfg):
    refuse_other_settings(cfg, {'test_cfg.score_thr': 0.3, 'test_cfg.new': [8, 'a']}, 'm.onnx')


FLIPPED = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', scale_factor=1.0, flip=True)]
SCALED = [FLIPPED[0], dict(type='MultiScaleFlipAug', img_scale=[(64, 32), (32, 16)], transforms=[])]
SOFT = dict(type='soft_nms', iou_thr=0.6, min_score=0.05)
CO_DETR = dict(
    type='CoDETR',
    query_head=dict(type='CoDINOHead'),
    test_cfg=[dict(max_per_img=3, nms=dict(type='soft_nms', method='linear', offset=0)), dict(a=1)],
)
PASTED = {
    'no form': (
        with_test_cfg(DENSE, dict(LIMITS, nms=dict(SOFT, class_agnostic=True))),
        check,
        {'model.test_cfg.nms.type': 'nms', 'model.test_cfg.nms.min_score': None},
    ),
    'beside the model': (
        with_test_cfg(DENSE, dict(LIMITS, nms=SOFT), True),
        check,
        {'test_cfg.nms.type': 'nms', 'test_cfg.nms.min_score': None},
    ),
    'no threshold': (
        with_test_cfg(DENSE, dict(LIMITS, nms=dict(type='soft_nms')), True),
        check,
        {'test_cfg.nms.type': 'nms', 'test_cfg.nms.iou_threshold': 0.3},  # that of mmcv
    ),
    'unknown argument': (
        with_test_cfg(MASKS, dict(rpn=dict(RPN, nms=dict(NMS, max_num=3)), rcnn=RCNN), True),
        check,
        {'test_cfg.rpn.nms.max_num': None},
    ),
    'unknown argument of soft_nms': (
        with_test_cfg(MASKS, dict(rpn=RPN, rcnn=dict(RCNN, nms=dict(SOFT, offset=0))), True),
        check,
        {'test_cfg.rcnn.nms.offset': None},
    ),
    'instances': (
        f"_base_ = '{PANOPTIC}'\nmodel = dict(test_cfg=dict(panoptic=dict(nms=dict(type='nms_match'))))\n",
        check,
        {'model.test_cfg.panoptic.nms.type': 'nms'},
    ),
    'older name': (
        f'model = dict(type="x")\ntest_cfg = {dict(max_per_img=9, nms_cfg=dict(NMS, offset=1))}\n',
        check_corners,
        {'test_cfg.nms_cfg.offset': None},
    ),
    'list': (
        f'model = {CO_DETR}\n',
        check_co_detr,
        {'model.test_cfg.0.nms.offset': None, 'model.test_cfg.0.nms.iou_threshold': 0.3},
    ),
    'module': (
        f'model = {dict(CO_DETR, eval_module="two-stage", test_cfg=[dict(max_per_img=3)])}\n',
        check_co_detr,
        {'model.eval_module': 'detr'},
    ),
    'flip': (
        with_data(dict(test=dict(pipeline=FLIPPED))), check_pipeline, {'data.test.pipeline.1.flip': False},
    ),
    'flip in a wrapped data set': (
        with_data(dict(test=[dict(type='X', datasets=[dict(pipeline=FLIPPED)])])),
        check_pipeline,
        {'data.test.0.datasets.0.pipeline.1.flip': False},
    ),
    'flip of val': (
        with_data(dict(val=dict(pipeline=FLIPPED))), check_pipeline, {'data.val.pipeline.1.flip': False},
    ),
    'flip without data': (
        with_data({}) + f'test_pipeline = {FLIPPED}\n', check_pipeline, {'test_pipeline.1.flip': False},
    ),
    'scales': (
        with_data(dict(test=dict(dataset=dict(pipeline=SCALED)))),
        check_pipeline,
        {
            'data.test.dataset.pipeline.1.img_scale.0': 64,
            'data.test.dataset.pipeline.1.img_scale.1': 32,
            **{f'data.test.dataset.pipeline.1.img_scale.{i}.{j}': None for i in (0, 1) for j in (0, 1)},
        },
    ),
    'classes': (
        f"_base_ = '{ROOT}/configs/demo/rtdetr_toy.py'\nmodel = dict(decoder=dict(num_classes=7))\n",
        check_classes,
        {'model.decoder.num_classes': 6},
    ),
    'module to import': (
        f"_base_ = '{DENSE}'\ncustom_imports = dict(imports=['json'], allow_failed_imports=False)\n"
        "model = dict(backbone=dict(_delete_=True, type='PastedNet'))\n",
        check_types,
        {'custom_imports.imports.1': 'pasted_nets'},
    ),
    'first module to import': (
        f"_base_ = '{DENSE}'\nmodel = dict(backbone=dict(_delete_=True, type='PastedNet2'))\n",
        check_types,
        {'custom_imports.imports': 'pasted_nets_2'},
    ),
    'overrides of a file': (
        with_test_cfg(DENSE, dict(LIMITS, nms=NMS), True),
        check_overrides,
        {'test_cfg.score_thr': 0.3, 'test_cfg.new.0': 8, 'test_cfg.new.1': 'a'},
    ),
}  # fmt: skip


def leaves(value, key=''):
    """Return dotted key -> value of everything in a config."""
    if not isinstance(value, dict | list | tuple) or not value:
        return {key: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    start = f'{key}.' if key else ''
    return {name: leaf for part, inner in items for name, leaf in leaves(inner, f'{start}{part}').items()}


@pytest.mark.parametrize('name', PASTED)
def test_an_advised_override_is_accepted_and_changes_no_other_value(name, tmp_path, monkeypatch):
    text, run_check, expected = PASTED[name]
    for suffix in ('', '_2'):
        net = f'PastedNet{suffix.strip("_")}'
        (tmp_path / f'pasted_nets{suffix}.py').write_text(
            f'from mmdet.models import BACKBONES\n\n\n@BACKBONES.register_module()\nclass {net}:\n    pass\n'
        )
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'own.py'
    path.write_text(text)
    with pytest.raises(Mm2OnnxError) as refused:
        run_check(load_config(str(path)))
    words = shlex.split(str(refused.value).partition('--cfg-options ')[2])
    overrides = options.parse_cfg_options(words)
    run_check(load_config(str(path), overrides))
    before = leaves(dict(read_config(str(path)).items()))
    after = leaves(dict(read_config(str(path), overrides).items()))
    keys = before.keys() | after.keys()
    assert {key: after.get(key) for key in keys if before.get(key) != after.get(key)} == expected


def test_a_threshold_under_its_older_name_is_what_mmcv_takes():
    nms = dict(type='nms', iou_thr=0.7)
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6.5], [0, 0, 10, 7.5]])
    kept = batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3), nms)[1]
    read = nms_config(dict(LIMITS, nms=nms))
    assert read == nms_config(dict(LIMITS, nms=dict(type='nms', iou_threshold=0.7)))
    suppression = Suppression(read.iou_threshold, read.max_per_img, read.class_agnostic, trimmed=False)
    scores, labels = torch.tensor([[0.9, 0.8, 0.7]]), torch.zeros(1, 3, dtype=torch.int64)
    dets, _ = suppression(boxes[None], scores, labels, scores > 0)
    assert dets[0, :, 4].gt(0).sum() == len(kept) == 2
    with pytest.raises(ConfigError, match='not both'):
        nms_config(dict(LIMITS, nms=dict(NMS, iou_thr=0.7)))


@pytest.mark.parametrize(('name', 'extra'), [('matplotlib', 'draw'), ('openvino.runtime', 'openvino')])
def test_a_package_of_an_extra_is_told_with_it(name, extra, capsys):
    def body(args):
        raise ModuleNotFoundError(f'No module named {name!r}', name=name)

    assert cli.run(body, cli.ArgumentParser(), []) == 2
    err = capsys.readouterr().err
    assert f"pip install 'mm2onnx[{extra}]'" in err and 'make env' not in err


def test_what_differs_from_what_was_tried_is_in_the_last_line(monkeypatch, capsys):
    fine = [doctor.Finding('numpy', '1.26', '1.26', 'ok')]
    other = [doctor.Finding('onnx', '9.0', '1.2', 'differs'), doctor.Finding('x', '2', '1', 'differs')]
    for findings in (fine, fine + other):
        monkeypatch.setattr(doctor, 'examine', lambda *words, found=findings, **more: found)
        assert doctor.main([]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert (last == 'healthy') == (findings is fine)
    assert last == 'healthy, with other versions than those tried: onnx 9.0 for 1.2, x 2 for 1; ' + (
        'the checks passed with them'
    )


def test_a_file_is_of_one_family_whichever_tool_shows_it(capsys):
    family = json.loads(fuzz.props_of(onnx.load(DEMO))['mm2onnx.family'])
    assert graph_app.main(['show', str(DEMO)]) == info_app.main([str(DEMO)]) == 0
    out = capsys.readouterr().out
    assert f'mm2onnx.family: "{family}"' in out and f'{family}: full' in out


def test_loops_are_compiled_before_the_time_is_taken(monkeypatch, capsys):
    monkeypatch.setattr(run_app, 'NOTE_AFTER_S', 0.01)
    calls, compile_loops = [], run_app.once('note: compiled')
    compile_loops(lambda: calls.append(time.sleep(0.3)))
    assert capsys.readouterr().err == 'note: compiled\n'
    compile_loops(lambda: calls.append(time.sleep(0.3)))
    assert len(calls) == 1 and capsys.readouterr().err == ''
    quick = run_app.once('note: compiled')
    with pytest.raises(ZeroDivisionError):
        quick(lambda: 1 / 0)
    monkeypatch.setattr(run_app, 'NOTE_AFTER_S', 60)
    quick(lambda: calls.append(None))
    assert len(calls) == 2 and capsys.readouterr().err == ''
