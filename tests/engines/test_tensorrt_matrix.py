"""Engines of the full-size models, float32 and float16, without a GPU (make test-matrix)."""

import gc

import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.engines.tensorrt import engine as tensorrt_engine
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.synthetic import coco
from toy_engines import package

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(3600)]
STREAM = 'projects/configs/StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e.py'
IMAGE_MODELS = {
    'atss decode': ('configs/atss/atss.py', dict(form='decode', height=608, width=608)),
    'decoupled solo raw': ('configs/solo/decoupled_solo_r50.py', dict(form='raw', height=800, width=1344)),
    'solov2 light full': (
        'configs/solov2/solov2_light_r34.py',
        dict(form='full', height=448, width=672, max_candidates=500),
    ),
    'rtdetr r50 full': ('configs/rtdetr/rtdetr_r50vd.py', dict(form='full', height=640, width=640)),
}


def untrained(config, folder):
    """Return a deployment with the weights of its initialisation: what builds does not depend on them."""
    cfg = load_config(config)
    torch.manual_seed(0)
    torch.save(dict(state_dict=find_family(cfg).build(cfg).state_dict()), folder / 'weights.pth')
    return deploy.load(config, str(folder / 'weights.pth'))


def export(config, folder, **options):
    deployment = untrained(config, folder)
    options = deploy.resolve(deployment.family.choose(**options), deployment.model, deployment.rule)
    picture = coco.sample(9, 'picture', 7, (480, 640))[0]
    traced = deploy.prepare_fixed(deployment.rule, picture, options.height, options.width)
    export_files(deployment, options, str(folder / 'm.onnx'), [traced])
    gc.collect()
    return folder / 'm.onnx'


def builds(path, folder, name, *, fp16, constants=()):
    """Build for SM 8.6 and print the size of the engine."""
    job = tensorrt_engine.prepare(
        path, fp16=fp16, constants=constants, package='tensorrt-rtx', architectures=[86]
    )
    record, built = tensorrt_engine.build_file(job, folder / 'm.engine')
    products = {
        kind: record.layers[kind] for kind in ('CONVOLUTION', 'MATRIX_MULTIPLY') if kind in record.layers
    }
    print(f'{name} {record.precision}: {record.nbytes / 1e6:.1f} MB, {built.seconds:.0f} s, {products}')
    return products


@pytest.mark.parametrize('name', IMAGE_MODELS)
def test_full_size_image_models_build(name, tmp_path):
    package()
    config, options = IMAGE_MODELS[name]
    path = export(config, tmp_path, **options)
    constants = ('img_shape', 'ori_shape') if 'solo' in name and options['form'] == 'full' else ()
    assert set(builds(path, tmp_path, name, fp16=False, constants=constants)['CONVOLUTION']) == {'float32'}
    assert set(builds(path, tmp_path, name, fp16=True, constants=constants)['CONVOLUTION']) == {'float16'}


def test_the_three_graphs_of_streampetr_build(tmp_path):
    package()
    deployment = untrained(STREAM, tmp_path)
    paths = export_files(deployment, deployment.family.choose(), str(tmp_path / 'graphs'))[0]
    files = sorted((tmp_path / 'graphs').glob('*.onnx'))
    assert len(files) == 3, paths
    for path in files:
        for fp16 in (False, True):
            builds(path, tmp_path, path.stem, fp16=fp16)
