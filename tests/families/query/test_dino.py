"""DINO and DDQ DETR are mmdet 3's by names, shapes and numbers; so are their traces."""

import copy
import json

import numpy as np
import pytest
import torch
from mmdet.models import builder

import dino_golden as golden
import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from drawn_weights import drawn
from image_checks import check, exported
from mmdeploy_ext.exporting.traced.whole import layouts_of
from mmdeploy_ext.families.traced.family import TracedFamily
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.upstream.weights.convert.mmdet3_model import to_mmdet2_model
from mmdeploy_ext.upstream.weights.convert.mmdet3_names import to_mmdet2_names

EXPECTED = json.loads(golden.FILE.read_text())


def built(kind):
    """Return the translated model, with the weights that mmdet 3 had."""
    built = builder.build_detector(to_mmdet2_model(copy.deepcopy(golden.MODELS[kind]))).eval()
    state, shapes = built.state_dict(), EXPECTED[kind]['shapes']
    names = {name: theirs for theirs, name in to_mmdet2_names(shapes, state, kind).items()}
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        name: shapes[theirs] for name, theirs in names.items()
    }
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(drawn(names[name], tensor))
    return built


@pytest.fixture(scope='module', params=golden.MODELS)
def case(request):
    return built(request.param), EXPECTED[request.param]['outputs']


def outputs(model):
    """Return logits and boxes of the head, as mmdet 2.28 asks it."""
    metas = [dict(batch_input_shape=golden.SIZE[2:], img_shape=(*shape, 3)) for shape in golden.SHAPES]
    with torch.no_grad():
        logits, boxes, *_ = model.bbox_head(model.extract_feat(golden.pictures()), metas)
    return logits[-1], boxes[-1]


def test_names_shapes_and_outputs_are_those_of_mmdet_3(case):
    model, expected = case
    logits, boxes = outputs(model)
    np.testing.assert_allclose(golden.sampled([logits.sigmoid(), boxes]), expected, atol=1e-4)


def prepared():
    """Return the pictures as they enter a network, with scales of their own."""
    found = []
    for image, (height, width) in zip(golden.pictures(), golden.SHAPES, strict=True):
        scale = np.asarray([0.5, 0.8, 0.5, 0.8], np.float32)
        original = round(height / 0.8), round(width / 0.5)
        found.append(PreparedImage(image.numpy(), (height, width), scale, original))
    return found


def test_its_graph_of_any_size_finds_the_same_in_a_batch(case):
    model, _ = case
    family, images = TracedFamily(), prepared()
    options = family.choose(height=golden.SIZE[2], width=golden.SIZE[3], dynamic=True)
    layouts_of(model).is_loaded = True
    _, run = exported(family, model, options, images[:1])
    check(family, model, run(family.feeds(images, True)), images, least=10)
