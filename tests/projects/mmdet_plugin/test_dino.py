"""DINO's parts are mmdet 3's by names, shapes and numbers; they are exported as a detector of queries."""

import copy
import json

import numpy as np
import pytest
import torch
from mmdet.models import builder

import dino_golden as golden
import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.families.parts import query_networks
from mmdeploy_ext.families.parts.query_networks import DinoNetwork
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.weights.convert.mmdet3_model import model2
from mmdeploy_ext.weights.convert.mmdet3_names import NOT_OF_THE_MODEL, renamed
from rtmdet_golden import drawn


@pytest.fixture(scope='module')
def expected():
    return json.loads(golden.FILE.read_text())


@pytest.fixture(scope='module')
def model(expected):
    """Return the translated model, with the weights that mmdet 3 had."""
    built = builder.build_detector(model2(copy.deepcopy(golden.MODEL))).eval()
    state = built.state_dict()
    names = {
        renamed(name, 'DINO'): name for name in expected['shapes'] if not name.startswith(NOT_OF_THE_MODEL)
    }
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        name: expected['shapes'][theirs] for name, theirs in names.items()
    }
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(drawn(names[name], tensor))
    return built


def outputs(model):
    """Return what the head gives, as mmdet 2.28 asks it."""
    metas = [dict(batch_input_shape=golden.SIZE[2:], img_shape=(*shape, 3)) for shape in golden.SHAPES]
    with torch.no_grad():
        logits, boxes, *_ = model.bbox_head(model.extract_feat(golden.pictures()), metas)
    return logits[-1], boxes[-1]


def furthest(found, expected):
    return max(
        np.abs(np.subtract(ours, theirs)).max() / np.abs(theirs).max()
        for ours, theirs in zip(found, expected['outputs'], strict=True)
    )


def test_names_shapes_and_outputs_are_those_of_mmdet_3(model, expected):
    assert furthest(golden.sampled(outputs(model)), expected) < 1e-4


FAULTS = {
    'by the first class': ('judged', lambda self, logits: logits[..., 0]),
    'x before y': ('HEIGHT_FIRST', [0, 1, 2, 3]),
    'other odds': ('least_odds', 0.3),
    'another temperature': ('TEMPERATURE', 20),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_of_the_decoder_is_seen(model, expected, fault, monkeypatch):
    name, value = FAULTS[fault]
    monkeypatch.setattr(DinoNetwork if hasattr(DinoNetwork, name) else query_networks, name, value)
    assert furthest(golden.sampled(outputs(model)), expected) > 1e-3


@pytest.mark.parametrize('exporter', ['torchscript', 'dynamo'])
def test_its_graph_gives_the_same(model, exporter):
    image, shapes = golden.pictures(), torch.tensor(golden.SHAPES, dtype=torch.float32)
    names = dict(input_names=['input', 'img_shape'], output_names=['logits', 'boxes'])
    network = DinoNetwork(model)
    opset = dict(torchscript=17, dynamo=18)[exporter]
    file = export_module(network, (image, shapes), exporter=exporter, opset=opset, **names)
    found = Runner(file).run(dict(input=image.numpy(), img_shape=shapes.numpy()))
    for name, wanted in zip(names['output_names'], outputs(model), strict=True):
        np.testing.assert_allclose(found[name], wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize('key', ['as_two_stage', 'with_box_refine'])
def test_one_stage_or_no_refinement_is_refused(key):
    config = model2({**copy.deepcopy(golden.MODEL), key: False})
    with pytest.raises(ConfigError, match=rf'model\.bbox_head\.{key}=False: expected True'):
        builder.build_detector(config)


def test_it_says_that_it_is_not_trained_here(model):
    with pytest.raises(NotImplementedError, match='DINO is trained by mmdet 3'):
        model.bbox_head.loss()
