"""ImVoteNet's first stage: the user's detector with the names that mmdet has for its parts."""

import copy

import pytest

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.two_stage.family import BOXES
from mmdeploy_ext.proving.open_points import untraced_methods
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


def test_weights_keep_their_names_and_a_copy_has_parts_of_its_own(seeded):
    _, model = seeded
    assert {key.split('.')[0] for key in model.state_dict()} == {
        'img_backbone', 'img_neck', 'img_rpn_head', 'img_roi_head',
    }  # fmt: skip
    other = copy.deepcopy(model)
    assert other.backbone is other.img_backbone is not model.img_backbone
    assert other.extract_feat.__self__ is other


def test_a_changed_test_path_is_named_and_is_the_reference(seeded, monkeypatch):
    family, model = seeded
    assert untraced_methods(family, model, image_branch()) == []
    (before, _), kind = family.reference(model).results(images(), True), type(model)
    extract = kind.extract_img_feat
    monkeypatch.setattr(kind, 'extract_img_feat', lambda self, img: extract(self, img * 1.5))
    (method,) = untraced_methods(family, model, image_branch())
    assert method.subject.startswith('ImVoteNet.extract_img_feat (')
    after, _ = family.reference(model).results(images(), True)
    assert len(before.scores) != len(after.scores) or abs(before.scores - after.scores).max() > 1e-2


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('test_cfg.img_rpn.nms', None, r'model\.test_cfg\.img_rpn has no nms'),
        ('test_cfg.img_rcnn.nms', None, r'model\.test_cfg\.img_rcnn has no nms'),
        ('img_roi_head.bbox_head.with_reg', False, r'model\.img_roi_head\.bbox_head\.with_reg=False'),
    ],
)
def test_refusals_name_the_keys_of_the_users_config(seeded, key, value, message):
    family, cfg = seeded[0], image_branch()
    cfg.merge_from_dict({f'model.{key}': value})
    with pytest.raises(ConfigError, match=message):
        family.check(cfg, family.choose(height=SIZE[0], width=SIZE[1], opset=17))


def test_a_branch_of_points_is_not_claimed():
    cfg = image_branch()
    cfg.model.pts_backbone = dict(type='PointNet2SASSG', in_channels=4)
    with pytest.raises(ConfigError, match='PointNet2SASSG needs furthest point sampling'):
        find_family(cfg)
