"""Full-size SOLO models over heads, forms, opsets, exporters and engines (make test-matrix)."""

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import list_images, read_image
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.seeded.by_name import solo_image, solo_weights
from mmdeploy_ext.synthetic import coco
from verdicts import matched_of

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]
REPO = Path(__file__).resolve().parents[3]
PHOTOS = REPO.parent / 'shared/data/coco_tiny'
LIGHT = 'solov2/solov2_light_r34_fpn_3x_coco.py'
MODELS = (
    'solo/solo_r50_fpn_1x_coco.py',
    'solo/decoupled_solo_r50_fpn_1x_coco.py',
    'solo/decoupled_solo_light_r50_fpn_3x_coco.py',
    'solov2/solov2_r50_fpn_1x_coco.py',
    'solov2/solov2_light_r50_dcn_fpn_3x_coco.py',
    'solov2/solov2_r101_dcn_fpn_3x_coco.py',
)
MEMORY_BAR_MB = 400
CANDIDATES = 500


@pytest.fixture(scope='module')
def pictures():
    """Return two photographs where there are any, generated pictures otherwise."""
    if PHOTOS.is_dir():
        return [(path.name, read_image(path)) for path in list_images([PHOTOS / 'val2017'])[:2]]
    return [(f'generated {index}', coco.sample(9, 'picture', index, (480, 640))[0]) for index in range(2)]


@pytest.fixture(scope='module')
def load(tmp_path_factory):
    """Return config, overrides -> deployment with seeded weights; one model is kept at a time."""
    folder, kept = tmp_path_factory.mktemp('weights'), {}

    def build(name=LIGHT, cfg_options=None, class_bias=0.0):
        key = name, str(cfg_options), class_bias
        if key not in kept:
            kept.clear()
            gc.collect()
            model = find_family(cfg := load_config(mmdet_config(name), cfg_options)).build(cfg)
            weights = solo_weights({key: value.shape for key, value in model.state_dict().items()})
            weights['mask_head.conv_cls.bias'] += class_bias
            torch.save(dict(state_dict=weights), folder / 'seeded.pth')
            kept[key] = deploy.load(mmdet_config(name), str(folder / 'seeded.pth'), cfg_options)
        return kept[key]

    return build


def export(deployment, pictures, path, **changes):
    options = FAMILIES['solo'].choose(**{'height': 320, 'width': 416, 'opset': 0, **changes})
    options = deploy.resolve(options, deployment.model, deployment.rule)
    traced = deploy.prepare_fixed(deployment.rule, pictures[0][1], options.height, options.width)
    export_files(deployment, options, str(path), [traced])


def export_and_prove(deployment, pictures, folder, engine='OnnxRuntimeBackend', **changes):
    export(deployment, pictures, folder / 'm.onnx', **changes)
    verdict, _ = prove(deployment, str(folder / 'm.onnx'), pictures, dict(engine=engine))
    (folder / 'm.onnx').unlink()
    assert verdict.proven, verdict.failures or verdict.to_json()
    assert matched_of(verdict) >= 50


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('form', ['full', 'raw'])
@pytest.mark.parametrize('dynamic', [False, True])
def test_every_head_is_proven(load, pictures, tmp_path, name, form, dynamic):
    export_and_prove(load(name), pictures, tmp_path, form=form, dynamic=dynamic)


@pytest.mark.parametrize('name', MODELS)
def test_the_fork_layout_is_proven(load, pictures, tmp_path, name):
    export_and_prove(load(name), pictures, tmp_path, form='raw', layout='fork')


@pytest.mark.parametrize('opset', [11, 13, 16, 18, 20])
def test_opsets(load, pictures, tmp_path, opset):
    export_and_prove(load(), pictures, tmp_path, opset=opset, dynamic=True)


@pytest.mark.parametrize('form', ['full', 'raw'])
def test_dynamo(load, pictures, tmp_path, form):
    export_and_prove(load(), pictures, tmp_path, form=form, dynamic=True, exporter='dynamo')


@pytest.mark.parametrize('changes', [dict(simplify=True), dict(max_candidates=4000), dict(batch=2)], ids=str)
def test_options(load, pictures, tmp_path, changes):
    export_and_prove(load(), pictures, tmp_path, **changes)


@pytest.mark.parametrize('form', ['full', 'raw'])
def test_openvino(load, pictures, tmp_path, form):
    pytest.importorskip('openvino')
    export_and_prove(load(), pictures, tmp_path, form=form, dynamic=True, engine='OpenVinoBackend')


@pytest.mark.parametrize(
    'changes', [dict(kernel='linear', sigma=0.5), dict(nms_pre=-1, max_per_img=-1, filter_thr=-1)], ids=str
)
def test_other_settings(load, pictures, tmp_path, changes):
    options = {f'model.test_cfg.{key}': value for key, value in {'score_thr': 0.2, **changes}.items()}
    export_and_prove(load(cfg_options=options), pictures, tmp_path, dynamic=True)


def test_real_size(load, pictures, tmp_path):
    export_and_prove(
        load('solov2/solov2_r50_fpn_1x_coco.py'), pictures, tmp_path, height=800, width=1344, dynamic=True
    )


PEAK = """
import resource, sys
import numpy as np
import onnxruntime
sys.path.insert(0, sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
feeds = dict(input=np.load(sys.argv[3]))
if 'full' in sys.argv[1]:
    feeds.update(img_shape=np.float32([[800, 1333]]), ori_shape=np.int64([480, 800]))
session.run(None, feeds)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.parametrize('name', ['solov2/solov2_r50_fpn_1x_coco.py', *MODELS[:2]])
def test_masks_in_the_graph_cost_bounded_memory(load, pictures, tmp_path, name):
    """Peak memory at 800x1344 with 500 candidates or more: at most 400 MB above the raw graph."""
    deployment = load(name)
    np.save(tmp_path / 'input.npy', solo_image(800, 1344).numpy())
    peak = {}
    for form in ('raw', 'full'):
        path = tmp_path / f'{form}.onnx'
        export(deployment, pictures, path, form=form, dynamic=True)
        words = [sys.executable, '-c', PEAK, str(path), str(REPO), str(tmp_path / 'input.npy')]
        peak[form] = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    with build_backend('OnnxRuntimeBackend', str(tmp_path / 'raw.onnx')) as backend:
        scores = backend.infer(dict(input=np.load(tmp_path / 'input.npy')))['cate_pred']
    assert (scores > 0.1).sum() >= CANDIDATES
    print(f'{name}: ' + ', '.join(f'{form} {size:.0f} MB' for form, size in peak.items()))
    assert peak['full'] - peak['raw'] <= MEMORY_BAR_MB, peak
