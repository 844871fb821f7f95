"""A line of a user's classes is changed after the export: the old file is not proven.

A new file is proven where the graph is traced through the line. What a graph computes by itself (decoding,
`get_bboxes`, the test path) it does not follow: the new file is not proven either, and the method is named.
"""

import importlib
import json
import sys

import pytest
from mmdet.datasets import PIPELINES

from marking import in_suite
from mmdeploy_ext.core.errors import Mm2OnnxError
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import load_families
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.ladder import prove
from toy_atss import CHECKPOINT, CONFIG, PICTURE

PLUGIN = """
import torch
from mmcv.cnn.bricks.registry import ACTIVATION_LAYERS
from mmdet.core.anchor import AnchorGenerator
from mmdet.core.anchor.builder import PRIOR_GENERATORS
from mmdet.core.bbox.builder import BBOX_CODERS
from mmdet.core.bbox.coder import DeltaXYWHBBoxCoder
from mmdet.datasets import CocoDataset
from mmdet.datasets.builder import DATASETS, PIPELINES
from mmdet.datasets.pipelines import Normalize
from mmdet.models import ATSS, FPN, ATSSHead, ResNet
from mmdet.models.builder import BACKBONES, DETECTORS, HEADS, NECKS


@BACKBONES.register_module(force=True)
class MyBackbone(ResNet):
    def forward(self, x):
        return tuple(one * 1.0 for one in super().forward(x))  # backbone


class MyOperator(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0  # operator

    @staticmethod
    def symbolic(g, x):
        return g.op('Identity', x)


@ACTIVATION_LAYERS.register_module(force=True)
class MyActivation(torch.nn.Module):
    def __init__(self, inplace=False):
        super().__init__()

    def forward(self, x):
        return x * 1.0  # activation


@NECKS.register_module(force=True)
class MyNeck(FPN):
    def forward(self, inputs):
        maps = super().forward(inputs)
        return tuple(one * 1.0 for one in maps)  # neck


@BBOX_CODERS.register_module(force=True)
class MyCoder(DeltaXYWHBBoxCoder):
    def decode(self, *args, **kwargs):
        return super().decode(*args, **kwargs) * 1.0  # coder


@PRIOR_GENERATORS.register_module(force=True)
class MyAnchors(AnchorGenerator):
    def grid_priors(self, *args, **kwargs):
        return [one * 1.0 for one in super().grid_priors(*args, **kwargs)]  # priors


@HEADS.register_module(force=True)
class MyHead(ATSSHead):
    def forward_single(self, x, scale):
        scores, *others = super().forward_single(x, scale)
        return (scores * 1.0, *others)  # layer

    def get_bboxes(self, *args, **kwargs):
        return [(boxes * 1.0, labels) for boxes, labels in super().get_bboxes(*args, **kwargs)]  # get_bboxes

    def loss(self, *args, **kwargs):
        return super().loss(*args, **kwargs) * 1.0  # training


@DETECTORS.register_module(force=True)
class MyDetector(ATSS):
    def extract_feat(self, img):
        maps = super().extract_feat(img)
        return tuple(MyOperator.apply(one) * 1.0 for one in maps)  # features

    def simple_test(self, img, img_metas, rescale=False):
        found = super().simple_test(img, img_metas, rescale)
        return [[rows[rows[:, 4] > 0.0] for rows in one] for one in found]  # test path


@PIPELINES.register_module('Normalize', force=True)
class MyNormalize(Normalize):
    def __call__(self, results):
        results = super().__call__(results)
        results['img'] = results['img'] * 1.0  # step
        return results


@DATASETS.register_module(force=True)
class MyData(CocoDataset):
    def prepare_test_img(self, index):
        results = super().prepare_test_img(index)
        results['img'] = [one * 1.0 for one in results['img']]  # data set
        return results
"""
TYPES = {
    'model.type': 'MyDetector',
    'model.backbone.type': 'MyBackbone',
    'model.neck.type': 'MyNeck',
    'model.neck.act_cfg': dict(type='MyActivation', inplace=False),
    'model.bbox_head.type': 'MyHead',
    'model.bbox_head.bbox_coder.type': 'MyCoder',
    'model.bbox_head.anchor_generator.type': 'MyAnchors',
    'data.test.type': 'MyData',
}
TRACED = 'backbone', 'activation', 'neck', 'layer', 'features'
"""Lines that the graph is traced through."""
NAMED = {
    'coder': 'MyCoder.decode',
    'priors': 'MyAnchors.grid_priors',
    'get_bboxes': 'MyHead.get_bboxes',
    'test path': 'MyDetector.simple_test',
    'step': 'MyNormalize',
    'data set': 'MyData',
}
"""Line that no graph shows -> what a verdict names."""
CLAMPED = '* 1.0', '.clamp(max=0.3)'
"""A norm behind maps of features undoes a factor."""
CHANGES = {
    **dict.fromkeys(('activation', 'neck', 'features', 'operator'), CLAMPED),
    'test path': ('> 0.0', '> 0.3'),
    'step': ('* 1.0', '* 0.9'),
    'data set': ('* 1.0', '* 0.9'),
}
"""Line -> what is changed in it, if it is not '* 1.0' to '* 1.05'."""
PICTURES = [('toy.jpg', read_image(PICTURE)[::2, ::2])]


@pytest.fixture(scope='module')
def repository(tmp_path_factory):
    """Return a function that writes the plugin with one line changed and loads the model anew."""
    folder, written = tmp_path_factory.mktemp('repository'), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    load_families()

    def load(line=''):
        lines = PLUGIN.splitlines()
        if line:
            (place,) = [number for number, text in enumerate(lines) if text.endswith(f'# {line}')]
            lines[place] = lines[place].replace(*CHANGES.get(line, ('* 1.0', '* 1.05')))
        (folder / 'users_repository.py').write_text('\n'.join(lines))
        sys.modules.pop('users_repository', None)
        importlib.invalidate_caches()
        return deploy.load(
            CONFIG, CHECKPOINT, {'custom_imports': dict(imports=['users_repository']), **TYPES}
        )

    steps = dict(PIPELINES._module_dict)
    yield load
    PIPELINES._module_dict.update(steps)
    sys.path.remove(str(folder))
    sys.dont_write_bytecode = written


def export(deployment, path, form='full'):
    options = deployment.family.choose(form=form, dynamic=True, opset=17, height=128, width=160)
    picture = deploy.prepare_fixed(deployment.rule, PICTURES[0][1], options.height, options.width)
    export_files(deployment, options, str(path), [picture])
    return str(path)


@pytest.fixture(scope='module')
def old_file(repository, tmp_path_factory):
    """The file of the classes as they were."""
    return export(repository(), tmp_path_factory.mktemp('old') / 'm.onnx')


@pytest.fixture(scope='module')
def old_network(repository, tmp_path_factory):
    """The network alone."""
    return export(repository(), tmp_path_factory.mktemp('old') / 'm.onnx', 'raw')


def verdict_on(deployment, path, **claims):
    return prove(deployment, path, PICTURES, timed=False, **claims)[0]


@pytest.mark.matrix
def test_the_file_of_unchanged_classes_is_proven(repository, old_file):
    assert verdict_on(repository(), old_file).title == 'PROVEN'


@pytest.mark.parametrize('line', in_suite(TRACED, 'neck'))
def test_a_line_that_is_traced_is_proven_after_a_new_export(repository, old_network, tmp_path, line):
    deployment = repository(line)
    assert verdict_on(deployment, old_network).title == 'NOT PROVEN'
    new_file = export(deployment, tmp_path / 'm.onnx', 'raw')
    assert verdict_on(deployment, new_file, written=True).title == 'PROVEN'


@pytest.mark.parametrize('line', in_suite(NAMED, 'coder'))
def test_a_line_that_no_graph_shows_is_never_proven_and_is_named(repository, old_file, tmp_path, line):
    deployment = repository(line)

    def judged(file, **claims):
        try:
            verdict = verdict_on(deployment, file or export(deployment, tmp_path / 'm.onnx'), **claims)
        except Mm2OnnxError as error:
            return str(error)
        assert verdict.title == 'NOT PROVEN'
        return json.dumps(verdict.to_json())

    assert NAMED[line].partition('.')[0] in judged(old_file)
    assert NAMED[line].partition('.')[0] in judged('', written=True)


@pytest.mark.matrix
def test_an_operator_that_computes_otherwise_than_its_symbol_is_not_proven(repository, old_file, tmp_path):
    deployment = repository('operator')
    assert verdict_on(deployment, old_file).title == 'NOT PROVEN'
    new_file = export(deployment, tmp_path / 'm.onnx')
    assert verdict_on(deployment, new_file, written=True).title == 'NOT PROVEN'
