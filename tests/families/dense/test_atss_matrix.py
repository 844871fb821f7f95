"""Full-size ATSS over opsets, forms, sizes, exporters, engines and variants (make test-matrix)."""

import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.seeded.weights import fill_seeded, normalised_deviation
from mmdeploy_ext.synthetic import coco
from toy_atss import REPO
from verdicts import matched_of

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]
FORMS = ('full', 'decode', 'raw')
R50 = str(REPO / 'configs/atss/atss.py')
DYHEAD = mmdet_config('dyhead/atss_r50_fpn_dyhead_1x_coco.py')
DYHEAD_SWIN = mmdet_config('dyhead/atss_swin-l-p4-w12_fpn_dyhead_mstrain_2x_coco.py')
DYNAMIC = dict(dynamic=True)
DCN = {
    'model.backbone.dcn': dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
    'model.backbone.stage_with_dcn': (False, True, True, True),
}
CELLS = [
    *((R50, {}, dict(opset=opset, form=form, **DYNAMIC)) for opset in range(11, 21) for form in FORMS),
    *((R50, {}, dict(height=608, width=608, form=form)) for form in FORMS),
    (R50, {}, dict(height=800, width=1344)),
    (R50, {}, dict(batch=3)),
    (R50, {}, dict(form='decode', score_form='product', **DYNAMIC)),
    *((R50, {}, dict(simplify=True, form=form, **DYNAMIC)) for form in FORMS),
    *((R50, {}, dict(opset=18, exporter='dynamo', form=form, **DYNAMIC)) for form in FORMS),
    *((R50, {}, dict(engine='OpenVinoBackend', form=form, **DYNAMIC)) for form in FORMS),
    (R50, DCN, dict(opset=20, **DYNAMIC)),
    (R50, DCN, dict(engine='OpenVinoBackend')),
    (mmdet_config('atss/atss_r101_fpn_1x_coco.py'), {}, DYNAMIC),
    (DYHEAD, {}, DYNAMIC),
    (DYHEAD_SWIN, {}, {}),
]
PICTURES = [(f'generated {index}', coco.sample(9, 'picture', index, (480, 640))[0]) for index in range(2)]


@pytest.mark.parametrize(('config', 'cfg_options', 'changes'), CELLS)
def test_a_full_size_file_is_proven(config, cfg_options, changes, tmp_path):
    changes = dict(changes)
    engine = changes.pop('engine', 'OnnxRuntimeBackend')
    if engine == 'OpenVinoBackend':
        pytest.importorskip('openvino', reason='openvino is an optional extra: pip install openvino')
    cfg = load_config(config, cfg_options)
    family = find_family(cfg)
    deviation = normalised_deviation(family.preprocess_rule(cfg).std)
    state_dict = fill_seeded(family.build(cfg), deviation=deviation).state_dict()
    torch.save(dict(state_dict=state_dict), tmp_path / 'seeded.pth')
    deployment = deploy.load(config, str(tmp_path / 'seeded.pth'), cfg_options)
    options = FAMILIES['dense'].choose(**{'height': 320, 'width': 416, 'opset': 0, **changes})
    options = deploy.resolve(options, deployment.model, deployment.rule)
    traced = deploy.prepare_fixed(deployment.rule, PICTURES[0][1], options.height, options.width)
    export_files(deployment, options, str(tmp_path / 'm.onnx'), [traced])
    verdict, _ = prove(deployment, str(tmp_path / 'm.onnx'), PICTURES, dict(engine=engine))
    assert verdict.proven, verdict.failures or verdict.to_json()
    assert matched_of(verdict) >= 50 or options.score_form == 'product'
