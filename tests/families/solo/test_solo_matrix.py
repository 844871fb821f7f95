"""Full-size SOLO models over heads, forms, opsets, exporters and engines (make test-matrix)."""

import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.seeded.by_name import solo_weights
from mmdeploy_ext.synthetic import coco
from verdicts import matched_of

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]
LIGHT = 'solov2/solov2_light_r34_fpn_3x_coco.py'
MODELS = (
    'solo/solo_r50_fpn_1x_coco.py',
    'solo/decoupled_solo_r50_fpn_1x_coco.py',
    'solo/decoupled_solo_light_r50_fpn_3x_coco.py',
    'solov2/solov2_r50_fpn_1x_coco.py',
    'solov2/solov2_light_r50_dcn_fpn_3x_coco.py',
    'solov2/solov2_r101_dcn_fpn_3x_coco.py',
)
DYNAMIC = dict(dynamic=True)
CELLS = [
    *(
        (name, {}, dict(form=form, dynamic=dynamic))
        for name in MODELS
        for form in ('full', 'raw')
        for dynamic in (False, True)
    ),
    *((name, {}, dict(form='raw', layout='fork')) for name in MODELS),
    *((LIGHT, {}, dict(opset=opset, **DYNAMIC)) for opset in (11, 13, 16, 18, 20)),
    *((LIGHT, {}, dict(form=form, opset=18, exporter='dynamo', **DYNAMIC)) for form in ('full', 'raw')),
    *((LIGHT, {}, dict(form=form, engine='OpenVinoBackend', **DYNAMIC)) for form in ('full', 'raw')),
    (LIGHT, {}, dict(simplify=True)),
    (LIGHT, {}, dict(max_candidates=4000)),
    (LIGHT, {}, dict(batch=2)),
    (LIGHT, {'model.test_cfg.kernel': 'linear', 'model.test_cfg.sigma': 0.5}, DYNAMIC),
    (MODELS[3], {}, dict(height=800, width=1344, **DYNAMIC)),
]
PICTURES = [(f'generated {index}', coco.sample(9, 'picture', index, (480, 640))[0]) for index in range(2)]


@pytest.mark.parametrize(('name', 'cfg_options', 'changes'), CELLS)
def test_a_full_size_file_is_proven(name, cfg_options, changes, tmp_path):
    changes = dict(changes)
    engine = changes.pop('engine', 'OnnxRuntimeBackend')
    if engine == 'OpenVinoBackend':
        pytest.importorskip('openvino')
    model = find_family(cfg := load_config(mmdet_config(name), cfg_options)).build(cfg)
    weights = solo_weights({key: value.shape for key, value in model.state_dict().items()})
    torch.save(dict(state_dict=weights), tmp_path / 'seeded.pth')
    deployment = deploy.load(mmdet_config(name), str(tmp_path / 'seeded.pth'), cfg_options)
    options = FAMILIES['solo'].choose(**{'height': 320, 'width': 416, 'opset': 0, **changes})
    options = deploy.resolve(options, deployment.model, deployment.rule)
    traced = deploy.prepare_fixed(deployment.rule, PICTURES[0][1], options.height, options.width)
    export_files(deployment, options, str(tmp_path / 'm.onnx'), [traced])
    verdict, _ = prove(deployment, str(tmp_path / 'm.onnx'), PICTURES, dict(engine=engine))
    assert verdict.proven, verdict.failures or verdict.to_json()
    assert matched_of(verdict) >= 50
