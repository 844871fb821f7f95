"""Detectors that mmdet 2.28 lacks give, translated, what mmdet 3 finds; so do their graphs."""

import copy
import json

import numpy as np
import pytest
import torch
from mmcv import Config, ConfigDict
from mmdet.models import builder

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import mmdet3_detectors_golden as golden
from drawn_weights import drawn
from marking import in_suite
from mmdeploy_ext.exporting.traced.whole import Whole, trace
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.models.catalogue import MODELS_2D, register_all
from mmdeploy_ext.upstream.weights.convert.mmdet3_model import to_mmdet2_model
from mmdeploy_ext.upstream.weights.convert.mmdet3_names import to_mmdet2_names

EXPECTED = json.loads(golden.FILE.read_text())
META = dict(
    batch_input_shape=golden.SIZE[2:],
    img_shape=(*golden.SHAPE, 3),
    ori_shape=(*golden.ORIGINAL, 3),
    scale_factor=np.asarray([*golden.SCALE] * 2, np.float32),
)


@pytest.fixture(scope='module', params=in_suite(golden.CASES, *golden.CASES))
def case(request):
    """Return what mmdet 3 finds, the translated config, and its model with the weights that mmdet 3 had."""
    register_all(MODELS_2D)
    config, expected = to_mmdet2_model(copy.deepcopy(golden.CASES[request.param])), EXPECTED[request.param]
    model = builder.build_detector(ConfigDict(config)).eval()
    state = model.state_dict()
    names = to_mmdet2_names(expected['shapes'], state, config['type'])
    theirs = {name: key for key, name in names.items()}
    assert {name: [*tensor.shape] for name, tensor in state.items()} == {
        name: expected['shapes'][key] for name, key in theirs.items()
    }
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(drawn(theirs[name], tensor))
    return expected, config, model


def check(rows, labels, masks, expected):
    np.testing.assert_array_equal(labels, expected['labels'])
    np.testing.assert_allclose(rows, expected['rows'], atol=2e-3)
    if 'pixels' in expected:
        found = golden.facts(rows, labels, masks)['pixels']
        assert np.abs(np.subtract(found, expected['pixels'])).max() <= 2  # of a band, on its edges


def test_the_model_finds_what_mmdet_3_finds(case):
    expected, _, model = case
    with torch.no_grad():
        (result,) = model.simple_test(golden.picture(), [META], rescale=True)
    boxes, masks = result if isinstance(result, tuple) else (result, None)
    labels = np.repeat(np.arange(len(boxes)), [len(of_class) for of_class in boxes])
    rows = np.concatenate(boxes)
    order = np.argsort(-rows[:, 4], kind='stable')
    masks = masks and [[mask for of_class in masks for mask in of_class][row] for row in order]
    check(rows[order], labels[order], masks, expected)


def test_the_modules_of_its_graph_find_the_same(case):
    expected, config, model = case
    family = find_family(Config(dict(model=config)))
    height, width = golden.SIZE[2:]
    options = Options(family.options, height=height, width=width)
    tensors = dict(
        input=golden.picture(),
        img_shape=torch.tensor([golden.SHAPE], dtype=torch.float32),
        scale_factor=torch.tensor([[*golden.SCALE] * 2]),
        ori_shape=torch.tensor(golden.ORIGINAL),
        border=torch.zeros(1, 2),
    )
    with torch.no_grad():
        for stage in family.stages(model, options):
            inputs = [tensors[name] for name in stage.inputs]
            outputs = stage.module(*inputs)
            if isinstance(stage.module, Whole):
                trace(stage.module, inputs)
                outputs = [stage.module.found[name] for name in stage.outputs]
            tensors.update(zip(stage.outputs, outputs, strict=True))
    masks = tensors['masks'][0].numpy() if 'masks' in tensors else None
    check(tensors['dets'][0].numpy(), tensors['labels'][0].numpy(), masks, expected)
