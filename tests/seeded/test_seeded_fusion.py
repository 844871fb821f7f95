"""Drawn weights of BEVFusion: boxes of many places, sizes and classes, whose scores are spread."""

import numpy as np
import pytest

import toy_bevfusion
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.families.base import DETECTOR, find_family
from mmdeploy_ext.seeded.weights import seeded_model


@pytest.mark.matrix  # in the suite: the matched results of BEVFusion's proof
@pytest.mark.parametrize('changes', [{}, toy_bevfusion.alone('centers')], ids=['fusion', 'cameras'])
def test_frames_give_boxes_of_several_classes(tmp_path, changes):
    cfg = load_config(toy_bevfusion.write_config(tmp_path / 'm.py', **changes))
    family = find_family(cfg, DETECTOR)
    model = seeded_model(cfg, family)
    reference = family.reference(model)
    found = [
        reference.step(one).detections for one in family.data.generated_sweeps(family.preprocess_rule(cfg), 3)
    ]
    scores = np.concatenate([one.scores for one in found])
    assert (scores > 0.1).sum() >= 20 and scores.std() > 0.05 and scores.max() < 0.999
    assert len(np.unique(np.concatenate([one.labels for one in found]))) >= 4
    sizes = np.concatenate([one.boxes[:, 3:6] for one in found])
    assert sizes.min() > 0.1 and sizes.max() < 60
