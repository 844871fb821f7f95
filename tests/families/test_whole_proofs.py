"""Whole proofs of files of toys: a two-stage detector and one of queries in the suite."""

import pytest

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import toy_corner
import toy_query
import toy_two_stage
import toy_yolact
from image_checks import seeded_detector
from marking import in_suite
from mmdeploy_ext.base.config import without_augmentation
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from proofs import prove
from toy_atss import PICTURE, REPO

SIZE = (128, 192)
IMAGES = [('toy.jpg', read_image(PICTURE))]


def unclipped():
    """Return a toy without clipped boxes: its file has an input of no use."""
    cfg = toy_two_stage.toy('faster')
    for head in (cfg.model.rpn_head, cfg.model.roi_head.bbox_head):
        head.bbox_coder.clip_border = False
    return cfg


TOYS = {
    'judged': lambda: toy_two_stage.toy('judged'),
    'points': lambda: toy_two_stage.toy('points'),
    'panoptic_fpn': lambda: toy_two_stage.toy('panoptic'),
    'unclipped': unclipped,
    'plain': toy_query.toy,
    'panoptic': lambda: toy_query.toy('panoptic'),
    'maskformer': lambda: toy_query.toy('maskformer'),
    'corner': toy_corner.toy,
    'yolact': toy_yolact.toy,
}
CASES = [
    ('mask', {}),
    ('mask', dict(form='regions')),
    ('mask', dict(form='proposals')),
    ('plain', {}),
    *((kind, dict(dynamic=True)) for kind in ('mask', *TOYS)),
]


def detector_of(kind):
    if kind == 'mask':
        own = {'data.test.pipeline.1.img_scale': SIZE[::-1], 'model.test_cfg.rcnn.max_per_img': 20}
        return detectors.load(toy_two_stage.CONFIG, f'{REPO}/demo/checkpoints/mask_rcnn_toy.pth', own)
    cfg = TOYS[kind]()
    without_augmentation(cfg)
    for step in cfg.data.test.pipeline:
        if 'img_scale' in step:
            step['img_scale'] = SIZE[::-1]
    return seeded_detector(cfg)


@pytest.mark.parametrize(
    ('kind', 'chosen'), in_suite(CASES, ('mask', {}), ('plain', {}), ('yolact', dict(dynamic=True)))
)
def test_a_file_is_proven(kind, chosen, tmp_path):
    detector = detector_of(kind)
    options = detector.family.choose(height=SIZE[0], width=SIZE[1], opset=17, **chosen)
    picture = detectors.prepare_fixed(detector.rule, IMAGES[0][1], *SIZE)
    export_files(detector, options, str(tmp_path / 'm.onnx'), [picture])
    verdict = prove(detector, str(tmp_path / 'm.onnx'), IMAGES, timed=False)
    assert verdict.proven, verdict.failures
