"""Seeded weights of LiDAR detectors: cells without points score low, sweeps give boxes of several classes."""

import itertools

import numpy as np
import pytest
import torch

import toy_anchor3d
import toy_centerpoint
from dev.seeded.lidar import EMPTY_LOGIT, SWEEPS, head_outputs
from dev.seeded.weights import seeded_model, write_seeded
from marking import in_suite
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.base import DETECTOR, find_family
from mmdeploy_ext.runtime.geometry import sigmoid

KINDS = [
    *(('anchor3d', kind) for kind in toy_anchor3d.KINDS),
    *(('centerpoint', kind) for kind in toy_centerpoint.VARIANTS),
]
SUITE = ('anchor3d', 'second'), ('anchor3d', 'nuscenes'), ('centerpoint', 'circle')
THRESHOLD = 0.1


def config_of(folder, family, kind):
    if family == 'anchor3d':
        return toy_anchor3d.write_config(folder, kind)
    return toy_centerpoint.write_config(folder, words=toy_centerpoint.VARIANTS[kind])


@pytest.fixture(scope='module', autouse=True)
def registered():
    toy_centerpoint.register()


@pytest.mark.parametrize(('name', 'kind'), in_suite(KINDS, *SUITE))
def test_sweeps_give_boxes_of_several_classes_and_an_empty_map_none(tmp_path, name, kind):
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.families.common.lidar_parts import parts_of

    cfg = load_config(config_of(tmp_path, name, kind))
    family = find_family(cfg, DETECTOR)
    model = seeded_model(cfg, family)
    reference = family.reference(model)
    sweeps = itertools.islice(
        family.data.generated_sweeps(family.preprocess_rule(cfg), SWEEPS + 3), SWEEPS, None
    )
    results = [reference.step(sweep) for sweep in sweeps]
    counted = [result.detections.above(THRESHOLD) for result in results]
    labels = np.concatenate([one.labels for one in counted])
    assert len(labels) >= (50 if name == 'anchor3d' else 5)
    assert len(set(labels.tolist())) >= 2
    assert sum(len(np.unique(one.scores)) for one in counted) >= 0.95 * len(labels)
    found = results[-1]
    scores = [name for name in found.outputs if name.startswith(('cls_score', 'heatmap'))]
    with torch.no_grad():
        nothing = head_outputs(parts_of(model), torch.zeros_like(torch.from_numpy(found.outputs['bev'])))
    empty = reference.flatten(nothing)
    for one, tensor in zip(reference.output_names, empty, strict=True):
        assert one not in scores or float(tensor.max()) <= EMPTY_LOGIT + 1e-3
    assert sigmoid(np.float32(EMPTY_LOGIT)) < THRESHOLD / 10


def test_the_seed_alone_decides_and_the_command_writes_the_same(tmp_path):
    config = config_of(tmp_path, 'anchor3d', 'voxels')
    cfg = load_config(config)
    family = find_family(cfg, DETECTOR)
    one, other = (seeded_model(cfg, family, seed).state_dict() for seed in (0, 1))
    write_seeded(config, tmp_path / 'out.pth')
    written = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    assert not [key for key, value in one.items() if not torch.equal(value, written[key])]
    assert not torch.equal(one['bbox_head.conv_cls.weight'], other['bbox_head.conv_cls.weight'])
