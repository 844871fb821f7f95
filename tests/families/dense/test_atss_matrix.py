"""Full-size ATSS over opsets, forms, sizes, exporters, engines and variants (make test-matrix)."""

import gc
import importlib.util
from pathlib import Path

import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import list_images, read_image
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.seeded.weights import fill_seeded, normalised_deviation
from mmdeploy_ext.synthetic import coco
from verdicts import matched_of

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]
REPO = Path(__file__).resolve().parents[3]
PHOTOS = REPO.parent / 'shared/data/coco_tiny'
FORMS = ('full', 'decode', 'raw')
R50 = str(REPO / 'configs/atss/atss.py')
DYHEAD = 'dyhead/atss_r50_fpn_dyhead_1x_coco.py'
DYHEAD_CAFFE = 'dyhead/atss_r50_caffe_fpn_dyhead_1x_coco.py'
DYHEAD_SWIN = 'dyhead/atss_swin-l-p4-w12_fpn_dyhead_mstrain_2x_coco.py'


def dcn(kind):
    return {
        'model.backbone.dcn': dict(type=kind, deform_groups=1, fallback_on_stride=False),
        'model.backbone.stage_with_dcn': (False, True, True, True),
    }


@pytest.fixture(scope='module')
def pictures():
    """Return photographs where there are any, generated pictures otherwise."""
    if PHOTOS.is_dir():
        return [(path.name, read_image(path)) for path in list_images([PHOTOS / 'val2017'])[:3]]
    return [(f'generated {index}', coco.sample(9, 'picture', index, (480, 640))[0]) for index in range(3)]


@pytest.fixture(scope='module')
def load(tmp_path_factory):
    """Return config, overrides -> deployment with seeded weights; one model is kept at a time."""
    folder, kept = tmp_path_factory.mktemp('weights'), {}

    def build(config=R50, cfg_options=None):
        key = config, str(cfg_options)
        if key not in kept:
            kept.clear()
            gc.collect()
            cfg = load_config(config, cfg_options)
            family = find_family(cfg)
            deviation = normalised_deviation(family.preprocess_rule(cfg).std)
            model = fill_seeded(family.build(cfg), deviation=deviation)
            torch.save(dict(state_dict=model.state_dict()), folder / 'seeded.pth')
            kept[key] = deploy.load(config, str(folder / 'seeded.pth'), cfg_options)
        return kept[key]

    return build


def export_and_prove(deployment, pictures, folder, engine='OnnxRuntimeBackend', **changes):
    options = FAMILIES['dense'].choose(**{'height': 320, 'width': 416, 'opset': 0, **changes})
    options = deploy.resolve(options, deployment.model, deployment.rule)
    traced = deploy.prepare_fixed(deployment.rule, pictures[0][1], options.height, options.width)
    path = folder / 'm.onnx'
    export_files(deployment, options, str(path), [traced])
    verdict, _ = prove(deployment, str(path), pictures[:2], dict(engine=engine))
    path.unlink()
    assert verdict.proven, verdict.failures or verdict.to_json()
    matched = matched_of(verdict)
    assert matched >= 50 or options.score_form == 'product'
    return options


def test_photographs_are_real():
    if not PHOTOS.is_dir():
        pytest.skip('../shared/data/coco_tiny not found: the matrix ran on generated pictures')
    assert list_images([PHOTOS / 'val2017'])


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('opset', range(11, 21))
def test_every_opset_and_form_is_proven(load, pictures, tmp_path, opset, form):
    export_and_prove(load(), pictures, tmp_path, opset=opset, form=form, dynamic=True)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', [(608, 608), (256, 992), (800, 1344)])
def test_fixed_sizes_are_proven(load, pictures, tmp_path, size, form):
    export_and_prove(load(), pictures, tmp_path, height=size[0], width=size[1], form=form)


def test_a_fixed_batch_is_proven(load, pictures, tmp_path):
    export_and_prove(load(), pictures, tmp_path, batch=3)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('dynamic', [False, True])
def test_simplified_files_are_proven(load, pictures, tmp_path, form, dynamic):
    export_and_prove(load(), pictures, tmp_path, form=form, dynamic=dynamic, simplify=True)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(('opset', 'dynamic'), [(18, False), (18, True), (20, True)])
def test_the_dynamo_exporter_is_proven(load, pictures, tmp_path, form, opset, dynamic):
    if importlib.util.find_spec('onnxscript') is None:
        pytest.skip('onnxscript is not installed: torch.onnx.export(dynamo=True) needs it')
    changes = dict(opset=opset, form=form, dynamic=dynamic, exporter='dynamo')
    export_and_prove(load(), pictures, tmp_path, **changes)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('dynamic', [False, True])
def test_openvino_is_proven(load, pictures, tmp_path, form, dynamic):
    pytest.importorskip('openvino', reason='openvino is an optional extra: pip install openvino')
    export_and_prove(load(), pictures, tmp_path, engine='OpenVinoBackend', form=form, dynamic=dynamic)


def test_the_product_of_scores_is_proven(load, pictures, tmp_path):
    export_and_prove(load(), pictures, tmp_path, form='decode', score_form='product', dynamic=True)


def test_r101_is_proven(load, pictures, tmp_path):
    deployment = load(mmdet_config('atss/atss_r101_fpn_1x_coco.py'))
    export_and_prove(deployment, pictures, tmp_path, dynamic=True)


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
@pytest.mark.parametrize(('opset', 'dynamic'), [(0, False), (0, True), (20, True)])
def test_deformable_r50_is_proven(load, pictures, tmp_path, kind, opset, dynamic):
    options = export_and_prove(load(R50, dcn(kind)), pictures, tmp_path, opset=opset, dynamic=dynamic)
    assert options.opset == (opset or 19)


@pytest.mark.parametrize('config', [DYHEAD, DYHEAD_CAFFE])
@pytest.mark.parametrize('dynamic', [False, True])
def test_dyhead_is_proven(load, pictures, tmp_path, config, dynamic):
    options = export_and_prove(load(mmdet_config(config)), pictures, tmp_path, dynamic=dynamic)
    assert options.opset == 19


def test_swin_l_with_dyhead_is_proven_at_a_fixed_size(load, pictures, tmp_path):
    export_and_prove(load(mmdet_config(DYHEAD_SWIN)), pictures, tmp_path)


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
@pytest.mark.parametrize('dynamic', [False, True])
def test_deformable_r50_is_proven_in_openvino(load, pictures, tmp_path, kind, dynamic):
    pytest.importorskip('openvino', reason='openvino is an optional extra: pip install openvino')
    engine = 'OpenVinoBackend'
    export_and_prove(load(R50, dcn(kind)), pictures, tmp_path, engine=engine, dynamic=dynamic)
