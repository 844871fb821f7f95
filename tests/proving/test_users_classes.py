"""Classes of the user's: a changed line is never proven by an old file, and what no graph shows is named.

A new file is proven where the graph is traced through the line. What a graph computes by itself (decoding,
preparation of pictures) it does not follow: the new file is not proven either.
"""

import importlib
import json
import sys

import pytest
from mmdet.datasets import PIPELINES

from marking import in_suite
from mmdeploy_ext.base.errors import Mm2OnnxError
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import load_families
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from proofs import prove, samples_alone
from toy_atss import CHECKPOINT, CONFIG, PICTURE

PLUGIN = """
import torch
from mmdet.core.bbox.builder import BBOX_CODERS
from mmdet.core.bbox.coder import DeltaXYWHBBoxCoder
from mmdet.datasets import CocoDataset
from mmdet.datasets.builder import DATASETS, PIPELINES
from mmdet.datasets.pipelines import Normalize
from mmdet.models import FPN, ATSSHead
from mmdet.models.builder import HEADS, NECKS


@NECKS.register_module(force=True)
class MyNeck(FPN):
    def forward(self, inputs):
        maps = super().forward(inputs)
        if maps[0].max() > 9e9 or torch.equal(maps[0], maps[1]) or torch.onnx.is_in_onnx_export():
            maps = tuple(maps)
        return tuple(one * 1.0 for one in maps)  # neck


@NECKS.register_module(force=True)
class CountingNeck(FPN):
    calls = 0

    def forward(self, inputs):
        self.calls += 1
        return tuple(level * self.calls for level in super().forward(inputs))


@BBOX_CODERS.register_module(force=True)
class MyCoder(DeltaXYWHBBoxCoder):
    def decode(self, *args, **kwargs):
        return super().decode(*args, **kwargs) * 1.0  # coder


@HEADS.register_module(force=True)
class MyHead(ATSSHead):
    def forward(self, feats):
        return super().forward(feats)


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
    'model.neck.type': 'MyNeck',
    'model.bbox_head.type': 'MyHead',
    'model.bbox_head.bbox_coder.type': 'MyCoder',
    'data.test.type': 'MyData',
}
NAMED = {'coder': 'MyCoder', 'step': 'MyNormalize', 'data set': 'MyData'}
"""Line that no graph shows -> class that a verdict names."""
CHANGES = {'neck': '.clamp(max=0.3)', 'step': '* 0.9', 'data set': '* 0.9'}
"""Line -> what stands for '* 1.0', if it is not '* 1.05'; a norm behind maps of features undoes a factor."""
PICTURES = [('toy.jpg', read_image(PICTURE)[::2, ::2])]


@pytest.fixture(scope='module')
def repository(tmp_path_factory):
    """Return a function that writes the plugin with one line changed and loads the model anew."""
    folder, written = tmp_path_factory.mktemp('repository'), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    load_families()

    def load(line='', **types):
        text = PLUGIN
        if line:
            (old,) = [one for one in PLUGIN.splitlines() if one.endswith(f'# {line}')]
            text = text.replace(old, old.replace('* 1.0', CHANGES.get(line, '* 1.05')))
        (folder / 'users_repository.py').write_text(text)
        sys.modules.pop('users_repository', None)
        importlib.invalidate_caches()
        options = {'custom_imports': dict(imports=['users_repository']), **TYPES, **types}
        return detectors.load(CONFIG, CHECKPOINT, options)

    steps = dict(PIPELINES._module_dict)
    yield load
    PIPELINES._module_dict.update(steps)
    sys.path.remove(str(folder))
    sys.dont_write_bytecode = written


def export(detector, path, form='decode'):
    options = detector.family.choose(form=form, dynamic=True, opset=17, height=128, width=160)
    picture = detectors.prepare_fixed(detector.rule, PICTURES[0][1], options.height, options.width)
    export_files(detector, options, str(path), [picture])
    return str(path)


@pytest.fixture(scope='module')
def old_file(repository, tmp_path_factory):
    """The file of the classes as they were."""
    return export(repository(), tmp_path_factory.mktemp('old') / 'm.onnx')


def verdict_on(detector, path, **claims):
    with samples_alone():
        return prove(detector, path, PICTURES, timed=False, **claims)


def test_what_a_graph_does_not_show_is_named_and_alone_fails_a_strict_proof(repository, old_file):
    verdict = verdict_on(repository(), old_file, strict=True)
    assert verdict.title == 'NOT PROVEN'
    assert verdict.failures == [f'untraced: {text}' for text in verdict.untraced]
    for name in ('MyNormalize', 'MyData', 'equal()', 'is_in_onnx_export()', 'Python boolean'):
        assert any(name in text for text in verdict.untraced), name
    assert {text.split()[0] for text in verdict.model_classes} >= {'MyNeck', 'MyHead', 'MyCoder'}


@pytest.mark.matrix
def test_a_line_that_is_traced_is_proven_after_a_new_export(repository, old_file, tmp_path):
    detector = repository('neck')
    verdict = verdict_on(detector, old_file, edited=True)
    assert verdict.title == 'NOT PROVEN'
    assert 'changed since the export: users_repository.py' in verdict.notes
    new_file = export(detector, tmp_path / 'm.onnx', 'raw')
    assert verdict_on(detector, new_file, written=True).title == 'PROVEN'


@pytest.mark.parametrize('line', in_suite(NAMED, 'coder'))
def test_a_line_that_no_graph_shows_is_never_proven_and_is_named(repository, old_file, tmp_path, line):
    detector = repository(line)

    def judged(file, **claims):
        try:
            verdict = verdict_on(detector, file or export(detector, tmp_path / 'm.onnx'), **claims)
        except Mm2OnnxError as error:
            return str(error)
        assert verdict.title == 'NOT PROVEN'
        return json.dumps(verdict.to_json())

    assert NAMED[line] in judged(old_file, edited=True)
    assert NAMED[line] in judged('', written=True)


@pytest.mark.matrix
def test_a_neck_that_multiplies_by_the_number_of_its_calls_is_not_proven(repository, tmp_path):
    detector = repository(**{'model.neck.type': 'CountingNeck'})
    verdict = verdict_on(detector, export(detector, tmp_path / 'm.onnx', 'raw'), written=True)
    assert verdict.title == 'NOT PROVEN'
    assert any('neck' in reason for reason in verdict.failures)
