"""ImVoteNet's first stage: the user's detector with the names that mmdet has for its parts."""

import pytest

from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.two_stage.family import BOXES
from mmdeploy_ext.seeded.weights import seeded_model
from toy_two_stage import SIZE, image_branch, images, run_stages, toy


@pytest.fixture(scope='module')
def seeded():
    cfg = image_branch()
    family = find_family(cfg)
    return family, seeded_model(cfg, family)


def test_stages_give_the_results_of_the_detectors_own_forward(seeded):
    family, model = seeded
    prepared = images()
    options = family.choose(height=SIZE[0], width=SIZE[1], opset=17)
    family.check(image_branch(), options)
    outputs = run_stages(family.stages(model, options), family.feeds(prepared, True))
    wanted = family.reference(model).results(prepared, True)
    for index, detections in enumerate(wanted):
        kept = outputs['labels'][index] >= 0
        assert kept.sum() == len(detections.bboxes_xyxy) >= 15
        assert outputs['dets'][index][kept, :4] == pytest.approx(detections.bboxes_xyxy, abs=1e-3)
        assert (outputs['labels'][index][kept] == detections.labels).all()


def test_results_are_those_of_mmdets_detector_with_the_same_weights(seeded):
    family, model = seeded
    cfg = toy()
    faster = find_family(cfg).build(cfg)
    faster.load_state_dict({key.removeprefix('img_'): value for key, value in model.state_dict().items()})
    for of_branch, of_faster in zip(
        family.reference(model).results(images(), True),
        BOXES.reference(faster).results(images(), True),
        strict=True,
    ):
        assert (of_branch.bboxes_xyxy == of_faster.bboxes_xyxy).all()
        assert (of_branch.scores == of_faster.scores).all()
