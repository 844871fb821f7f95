"""RTMDet's parts are mmdet 3's by names, shapes and numbers; its head is exported and proven as any other."""

import json

import numpy as np
import pytest
import torch
from mmdet.models import builder

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import rtmdet_golden as golden
from marking import in_suite
from mmdeploy_ext.base.config import load_config
from toy_atss import REPO

CONFIGS = {'tiny': 4.896, 's': 8.887, 'm': 24.709, 'l': 52.316, 'x': 94.856}
"""Millions of parameters; mmdet 3 states 4.8, 8.89, 24.71, 52.3 and 94.86."""
BUILD = dict(backbone=builder.build_backbone, neck=builder.build_neck, bbox_head=builder.build_head)


def parts(name, **changes):
    configs = {key: dict(one, **changes.get(key, {})) for key, one in golden.CASES[name].items()}
    return golden.parts_of(lambda key, cfg: BUILD[key](cfg), configs)


@pytest.mark.parametrize('name', in_suite(golden.CASES, 'published', 'objectness'))
def test_names_shapes_and_outputs_are_those_of_mmdet_3(name):
    expected = json.loads(golden.FILE.read_text())[name]
    found = golden.facts(parts(name))
    assert (found['keys'], found['tensors']) == (expected['keys'], expected['tensors'])
    for ours, theirs in zip(found['outputs'], expected['outputs'], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize('name', in_suite(CONFIGS, 'tiny', 'x'))
def test_the_configs_have_the_published_number_of_parameters(name):
    cfg = load_config(str(REPO / f'configs/rtmdet/rtmdet_{name}.py'))
    with torch.device('meta'):
        model = builder.build_detector(cfg.model)
    assert round(sum(one.numel() for one in model.parameters()) / 1e6, 3) == CONFIGS[name]
