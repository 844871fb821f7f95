"""RT-DETR graphs: proven against the detector at other sizes and batches; bad input is refused."""

import copy
import dataclasses

import numpy as np
import onnx
import pytest
import torch

import toy_rtdetr
from mmdeploy_ext.base.errors import ConfigError, ShapeError
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.families.rtdetr import runtime
from mmdeploy_ext.runtime import detect
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image, read_image
from proofs import prove
from verdicts import matched_of

SIDE = 128
SMALL = {'data.test.pipeline.1.img_scale': (SIDE, SIDE), 'model.decoder.num_layers': 2}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('rtdetr_export')


@pytest.fixture(scope='module')
def toy(folder):
    return toy_rtdetr.load_toy(folder, SMALL)


@pytest.fixture(scope='module')
def full(toy, folder):
    return toy_rtdetr.export_toy(toy, folder / 'full.onnx', height=96, width=128)


@pytest.fixture(scope='module')
def raw(toy, folder):
    return toy_rtdetr.export_toy(toy, folder / 'raw.onnx', form='raw', height=96, width=128)


@pytest.fixture(scope='module')
def raw_backend(raw):
    with build_backend('OnnxRuntimeBackend', raw, threads=1) as backend:
        yield backend


def test_the_full_graph_is_proven_at_other_sizes_and_batches(toy, full):
    verdict = prove(toy, full, [('toy', read_image(toy_rtdetr.PICTURE))], dict(threads=1), timed=False)
    assert verdict.proven, verdict.failures
    assert matched_of(verdict) >= 200
    model = onnx.load(full)
    assert [value.name for value in model.graph.input] == ['images', 'orig_target_sizes']
    assert [value.name for value in model.graph.output] == ['labels', 'boxes', 'scores']


def test_a_fixed_shape_is_height_and_width(toy):
    spec = toy.family.spec(toy.model, toy.family.choose(height=96, width=128, opset=17))
    assert spec.inputs[0].axes == (1, 3, 96, 128)
    spec = toy.family.spec(toy.model, toy.family.choose(height=96, width=128, opset=17, dynamic_batch=True))
    assert spec.inputs[0].axes == ('B', 3, 96, 128)


def test_sizes_are_those_of_the_picture_or_of_the_input(toy):
    image = prepare_image(toy.rule, np.zeros((50, 70, 3), np.uint8))
    for rescale, expected in ((True, [[70, 50]]), (False, [[SIDE, SIDE]])):
        assert toy.family.feeds([image], rescale)[runtime.SIZES].tolist() == expected
    padded = dataclasses.replace(image, img_shape=(SIDE, SIDE - 8))
    with pytest.raises(ShapeError, match='padded to 128x128'):
        toy.family.feeds([padded], rescale=True)


def test_an_input_of_too_few_tokens_is_refused_before_the_engine_runs(raw_backend):
    message = r'an input of 32x64 gives 42 tokens for 60 queries; the smallest .* is 64x64'
    with pytest.raises(ShapeError, match=message):
        raw_backend.infer({'images': np.zeros((1, 3, 32, 64), np.float32)})


def test_runtimes_of_both_forms_give_the_detectors_detections(toy, full, raw_backend):
    picture = read_image(toy_rtdetr.PICTURE)
    prepared = prepare_image(toy.rule, picture)
    wanted = toy.family.reference(toy.model).results([prepared], True)[0]
    with build_backend('OnnxRuntimeBackend', full, threads=1) as backend:
        found = detect.detect(backend, picture), detect.detect(raw_backend, picture)
    for got in found:
        assert len(got) == len(wanted) == 60
        np.testing.assert_array_equal(got.labels, wanted.labels)
        np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-5)
        np.testing.assert_allclose(got.bboxes_xyxy, wanted.bboxes_xyxy, atol=0.01)
    metas = [dict(ori_shape=picture.shape, img_shape=(SIDE, SIDE, 3), scale_factor=prepared.scale_factor)]
    with torch.no_grad():
        result = toy.model.simple_test(torch.from_numpy(prepared.tensor)[None], metas, rescale=True)[0]
    rows = np.concatenate(result)
    assert np.array_equal(np.sort(rows[:, 4]), np.sort(wanted.scores))


def test_pipelines_that_pad_are_refused(toy):
    cfg = copy.deepcopy(toy.cfg)
    for step in cfg.data.test.pipeline[1].transforms:
        if step['type'] == 'Resize':
            step['keep_ratio'] = True
    with pytest.raises(ConfigError, match='keeps the aspect ratio or pads'):
        toy.family.preprocess_rule(cfg)


def test_sizes_in_the_wrong_order_are_named():
    shapes = [(480, 640)]
    runtime.check_target_sizes(np.array([[640, 480]]), shapes)
    for wrong, message in (([[480, 640]], 'width comes first'), ([[640, 0]], 'positive')):
        with pytest.raises(ShapeError, match=message):
            runtime.check_target_sizes(np.array(wrong), shapes)


def test_re_parameterised_blocks_are_the_blocks(toy):
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = toy.model.extract_feat(images), prepared(toy.model).extract_feat(images)
    for one, two in zip(wanted, got, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-5)
