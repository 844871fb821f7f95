"""Full-size ATSS, SOLO and RT-DETR over forms, sizes, opsets, exporters and engines (make test-matrix)."""

import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from dev.seeded.by_name import rtdetr_weights, solo_weights
from dev.seeded.weights import fill_seeded, normalised_deviation
from mmdeploy_ext.base.config import load_config, mmdet_config
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.families.synthetic import coco
from proofs import prove
from toy_atss import REPO
from verdicts import matched_of

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]
FORMS = ('full', 'decode', 'raw')
DYNAMIC, FIXED, TWO = dict(dynamic=True), dict(dynamic=False), dict(dynamic=False, batch=2)
DYNAMO = dict(opset=18, exporter='dynamo')
OPENVINO = dict(engine='OpenVinoBackend')
ATSS = str(REPO / 'configs/atss/atss.py')
DCN = {
    'model.backbone.dcn': dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
    'model.backbone.stage_with_dcn': (False, True, True, True),
}
DENSE = [
    *((ATSS, {}, dict(opset=opset, form=form, **DYNAMIC)) for opset in range(11, 21) for form in FORMS),
    *((ATSS, {}, dict(height=608, width=608, form=form)) for form in FORMS),
    (ATSS, {}, dict(height=800, width=1344)),
    (ATSS, {}, dict(batch=3)),
    (ATSS, {}, dict(form='decode', score_form='product', **DYNAMIC)),
    *((ATSS, {}, dict(simplify=True, form=form, **DYNAMIC)) for form in FORMS),
    *((ATSS, {}, dict(form=form, **DYNAMO, **DYNAMIC)) for form in FORMS),
    *((ATSS, {}, dict(form=form, **OPENVINO, **DYNAMIC)) for form in FORMS),
    (ATSS, DCN, dict(opset=20, **DYNAMIC)),
    (ATSS, DCN, OPENVINO),
    (mmdet_config('atss/atss_r101_fpn_1x_coco.py'), {}, DYNAMIC),
    (mmdet_config('dyhead/atss_r50_fpn_dyhead_1x_coco.py'), {}, DYNAMIC),
    (mmdet_config('dyhead/atss_swin-l-p4-w12_fpn_dyhead_mstrain_2x_coco.py'), {}, {}),
]
LIGHT = mmdet_config('solov2/solov2_light_r34_fpn_3x_coco.py')
HEADS = [
    mmdet_config(f'{name}_coco.py')
    for name in (
        'solo/solo_r50_fpn_1x',
        'solo/decoupled_solo_r50_fpn_1x',
        'solo/decoupled_solo_light_r50_fpn_3x',
        'solov2/solov2_r50_fpn_1x',
        'solov2/solov2_light_r50_dcn_fpn_3x',
        'solov2/solov2_r101_dcn_fpn_3x',
    )
]
SOLO = [
    *(
        (head, {}, dict(form=form, **size))
        for head in HEADS
        for form in ('full', 'raw')
        for size in (FIXED, DYNAMIC)
    ),
    *((head, {}, dict(form='raw', layout='fork')) for head in HEADS),
    *((LIGHT, {}, dict(opset=opset, **DYNAMIC)) for opset in (11, 13, 16, 18, 20)),
    *((LIGHT, {}, dict(form=form, **DYNAMO, **DYNAMIC)) for form in ('full', 'raw')),
    *((LIGHT, {}, dict(form=form, **OPENVINO, **DYNAMIC)) for form in ('full', 'raw')),
    (LIGHT, {}, dict(simplify=True)),
    (LIGHT, {}, dict(max_candidates=4000)),
    (LIGHT, {}, dict(batch=2)),
    (LIGHT, {'model.test_cfg.kernel': 'linear', 'model.test_cfg.sigma': 0.5}, DYNAMIC),
    (HEADS[3], {}, dict(height=800, width=1344, **DYNAMIC)),
]
RTDETR = [
    (str(REPO / f'configs/rtdetr/rtdetr_{name}.py'), {}, dict(height=640, width=640, **engine, **chosen))
    for name in ('r18vd', 'r50vd')
    for engine in ({}, OPENVINO)
    for chosen in (
        dict(form='full', opset=16, **FIXED),
        dict(form='full', opset=17, **TWO),
        dict(form='full', opset=18, **DYNAMIC),
        dict(form='full', opset=17, dynamic=False, dynamic_batch=True),
        dict(form='full', opset=17, grid_sample='gather', **FIXED),
        dict(form='raw', opset=16, **DYNAMIC),
        dict(form='raw', opset=17, **FIXED),
        dict(form='raw', opset=19, **TWO),
        dict(form='raw', opset=20, **FIXED),
        dict(form='raw', opset=17, fuse=False, **FIXED),
        dict(form='raw', opset=17, grid_sample='gather', **TWO),
        dict(form='raw', opset=17, simplify=True, **FIXED),
    )
]
PICTURES = [(f'generated {index}', coco.sample(9, 'picture', index, (480, 640))[0]) for index in range(2)]


def weights_of(cfg):
    """Return the seeded weights of a config's model, by the rule of its family."""
    family = find_family(cfg)
    model = family.build(cfg)
    if family.name == 'dense':
        deviation = normalised_deviation(family.preprocess_rule(cfg).std)
        return fill_seeded(model, deviation=deviation).state_dict()
    rule = dict(solo=solo_weights, rtdetr=rtdetr_weights)[family.name]
    return rule({key: tuple(value.shape) for key, value in model.state_dict().items()})


@pytest.mark.parametrize(('config', 'cfg_options', 'changes'), [*DENSE, *SOLO, *RTDETR])
def test_a_full_size_file_is_proven(config, cfg_options, changes, tmp_path):
    changes = dict(changes)
    engine = changes.pop('engine', 'OnnxRuntimeBackend')
    if engine == 'OpenVinoBackend':
        pytest.importorskip('openvino', reason='openvino is an optional extra: pip install openvino')
    weights = weights_of(load_config(config, cfg_options))
    torch.save(dict(state_dict=weights), tmp_path / 'seeded.pth')
    detector = detectors.load(config, str(tmp_path / 'seeded.pth'), cfg_options)
    options = detector.family.choose(**{'height': 320, 'width': 416, 'opset': 0, **changes})
    options = detectors.resolve(options, detector.model, detector.rule)
    traced = detectors.prepare_fixed(detector.rule, PICTURES[0][1], options.height, options.width)
    export_files(detector, options, str(tmp_path / 'm.onnx'), [traced])
    verdict = prove(detector, str(tmp_path / 'm.onnx'), PICTURES, dict(engine=engine))
    assert verdict.proven, verdict.failures or verdict.to_json()
    assert matched_of(verdict) >= 50 or options.get('score_form', '') == 'product'
