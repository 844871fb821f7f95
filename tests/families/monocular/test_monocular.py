"""FCOS3D, PGD and SMOKE: proofs of toys, planted faults, cameras, what is refused."""

import dataclasses
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.models.builder import MODELS as MMDET_MODELS
from mmdet3d.core.bbox.coders import PGDBBoxCoder
from mmdet3d.datasets.pipelines.transforms_3d import AffineResize
from mmdet3d.models.builder import build_head
from mmdet3d.models.dense_heads import SMOKEMono3DHead
from mmdet3d.models.detectors import SMOKEMono3D

from image_checks import run_stages
from marking import in_suite
from mmdeploy_ext.base.config import test_pipeline as pipeline_of
from mmdeploy_ext.base.errors import ConfigError, DataError, ShapeError, UsageError
from mmdeploy_ext.cli import run_app
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.evaluate import detector as test_loop
from mmdeploy_ext.families.monocular import cameras, graphs, reference, task
from mmdeploy_ext.families.monocular.runtime import decoding
from mmdeploy_ext.families.monocular.runtime.decoding import MonocularDetections
from mmdeploy_ext.proving.pictures import references
from mmdeploy_ext.runtime.detect import open_model, results_of
from mmdeploy_ext.runtime.preprocess.cam2img import camera_for, cameras_of, check_camera, square_matrix
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image
from mmdeploy_ext.runtime.preprocess.pipeline_rule import steps_of
from proofs import prove, run_cases
from toy_monocular import CONFIGS, SIZE, exported, options, picture, seeded, toy

SMOKE = ('smoke', dict(form='full', dynamic=True))
FILES = [
    SMOKE,
    ('smoke', dict(form='raw', dynamic=True)),
    *(
        (kind, dict(form=form, dynamic=True))
        for kind in ('fcos3d', 'pgd')
        for form in ('full', 'decode', 'raw')
    ),
    *((kind, dict(exporter='dynamo')) for kind in CONFIGS),
]


@pytest.mark.parametrize(('kind', 'chosen'), in_suite(FILES, SMOKE))
def test_a_file_is_proven(kind, chosen):
    verdict = prove(seeded(kind), exported(kind, **chosen), [picture()], timed=False)
    assert verdict.proven, verdict.failures
    assert verdict.summary()['matched'] > 100


def test_a_file_with_the_camera_of_its_export_is_not_proven(monkeypatch):
    computed = references(seeded('smoke'), options('smoke', dynamic=True), [picture()])
    original, feeds = decoding.located, cameras.feeds(computed[0].images, rescale=False)

    def frozen(xp, centres, depths, cam2img):
        first = torch.from_numpy(feeds['cam2img'][:1]).expand_as(cam2img)
        return original(xp, centres, depths, first)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, 'located', frozen)
        file = exported.__wrapped__('smoke', dynamic=True)
    with build_backend('OnnxRuntimeBackend', file) as backend:
        assert not all(case.passed for case in run_cases(computed, backend))


@pytest.mark.parametrize(
    ('yaw', 'other', 'passed'),
    [(3.1399, -3.1399, True), (3.1399, 3.1399, True), (-1.0, -1.0 + 2 * np.pi, False), (4.0, 4.0, True)],
)
def test_a_yaw_is_a_turn_off_only_where_the_turns_begin(yaw, other, passed):
    def boxes(yaw):
        rows = np.tile(np.float32([1, 2, 20, 2, 2, 4, yaw, 0, 0]), (1, 1))
        return MonocularDetections(rows, np.float32([0.9]), np.zeros(1, np.int64))

    assert task.match_detections('picture', boxes(yaw), boxes(other)).passed == passed


def test_a_pgd_without_boxes_in_the_picture_and_without_bins_of_depth_is_decoded_as_mmdet3d_does():
    """Its weights of depths, which nothing reads then, are not missing, either."""
    cfg = toy('pgd').model
    changes = dict(pred_bbox2d=False, use_depth_classifier=False)
    dims, branches = cfg.bbox_head.group_reg_dims[:-1], cfg.bbox_head.reg_branch[:-1]
    changes |= dict(group_reg_dims=dims, reg_branch=branches, test_cfg=cfg.test_cfg)
    torch.manual_seed(0)
    head = build_head(dict(cfg.bbox_head, **changes, train_cfg=None)).eval()
    with torch.no_grad():
        outputs = head([torch.randn(1, 16, side, side) for side in (8, 4)])
        maps = dict(zip(reference.outputs_in_order(head), outputs, strict=True))
        feeds = dict(input=np.zeros((1, 3, 64, 64), np.float32), cam2img=np.eye(4)[None])
        decoded = reference.decoded_by_mmdet3d(SimpleNamespace(bbox_head=head), maps, feeds)
    products = [
        (scores.sigmoid() * centerness.sigmoid()).permute(0, 2, 3, 1).flatten(1, 2)
        for scores, centerness in zip(maps['cls_score'], maps['centerness'], strict=True)
    ]
    assert decoded['boxes'].shape == (1, 80, 7) and set(decoded) == {'boxes', 'scores'}
    torch.testing.assert_close(decoded['scores'], torch.cat(products, 1))


@pytest.mark.parametrize('kind', ['fcos3d', 'pgd'])
def test_stages_of_graphs_give_what_numpy_makes_of_the_maps(kind, monkeypatch):
    """The test below compares numpy with PyTorch."""
    detector, (_, image) = seeded(kind), picture()
    limits = dict(nms_pre=9, score_thr=0.06)  # each drops results
    monkeypatch.setattr(detector.model.bbox_head, 'test_cfg', detector.cfg.model.test_cfg | limits)
    prepared = detectors.prepare_fixed(detector.rule, image, *SIZE).with_camera(square_matrix(CAMERA))
    feeds, results = detector.family.feeds([prepared], rescale=False), {}
    feeds |= dict(img_shape=np.float32([[90, 0]]), scale_factor=np.float32([[2, 3, 2, 3]]))
    chosen = options(kind)
    network, _ = detector.family.stages(detector.model, chosen)
    raw = {name: array for name, array in run_stages([network], feeds).items() if name not in feeds}
    for form in ('raw', 'full', 'decode'):
        stages = detector.family.stages(detector.model, chosen.replace(form=form))[1:]
        outputs = run_stages(stages, feeds | raw) if stages else raw
        facts = detector.family.facts(detector.model)
        metadata = SimpleNamespace(form=form, options={}, postprocess=facts)
        (results[form],) = results_of(detector.family.name, metadata, outputs, feeds)
    for form in ('full', 'decode'):
        assert len(results[form]) == len(results['raw']) > 5
        for name in ('boxes', 'scores', 'labels', 'attributes', 'bboxes_xyxy', 'camera'):
            found, expected = (getattr(results[one], name) for one in (form, 'raw'))
            assert (found is None) == (expected is None)
            if expected is not None:
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3, err_msg=name)


@pytest.mark.parametrize('division', ['uniform', 'linear', 'log', 'loguniform'])
def test_depths_of_bins_are_those_of_mmdet3d(division):
    settings = dict(depth_range=(2, 70), depth_unit=9, division=division, num_depth_cls=7)
    no_share = torch.tensor(-np.inf)  # of the direct depth
    depth = graphs.depth_facts(
        SimpleNamespace(use_depth_classifier=True, fuse_lambda=no_share, weight_dim=1, **settings)
    )
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    expected = PGDBBoxCoder().decode_prob_depth(logits, *settings.values())
    found = decoding.mixed_depth(np, np.ones((1, 5), np.float32), logits[None].numpy(), depth)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


CAMERA = [[250.0, 0, 160, 9], [0, 240.0, 50, 1], [0, 0, 1, 0.01]]
LIDAR_TO_PICTURE = [[160.0, -250, 0.5, 9], [50, 0.2, -240, 20], [1, 0.01, 0.02, 0.3], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ('kind', 'camera'), [('fcos3d', CAMERA), ('pgd', CAMERA), ('imvoxelnet', LIDAR_TO_PICTURE)]
)
def test_mm2onnx_run_takes_a_file_of_cameras_and_gives_the_boxes_of_pytorch(kind, camera, tmp_path, capsys):
    """Graphs of the form 'raw' take no cameras, which their results need all the same."""
    file, (_, image) = exported(kind, form='raw'), picture()
    photo = tmp_path / 'a.png'
    cv2.imwrite(str(photo), image)
    command = [str(file), str(photo), '--out', str(tmp_path), '--json', str(tmp_path / 'a.json')]
    assert run_app.main(command) == 2
    assert 'camera' in capsys.readouterr().err
    with open_model(file) as model, pytest.raises(UsageError, match='camera'):
        model(image)
    (tmp_path / 'cameras.json').write_text(json.dumps({'images/a.png': camera}))
    assert run_app.main([*command, '--cameras', str(tmp_path / 'cameras.json')]) == 0
    entries = json.loads((tmp_path / 'a.json').read_text())['images'][0]['detections']
    detector = seeded(kind)
    prepared = detectors.prepare_fixed(detector.rule, image, *SIZE).with_camera(square_matrix(camera))
    (expected,) = detector.family.reference(detector.model).results([prepared], rescale=True)
    boxes = np.array([entry['box'] for entry in entries])
    assert len(boxes) == len(expected) > 5
    np.testing.assert_allclose(boxes, expected.boxes[:, : boxes.shape[1]], atol=1e-3)


@pytest.mark.parametrize('kind', ['smoke', 'fcos3d'])
def test_the_test_loop_takes_the_camera_of_the_network_input_from_the_meta_of_a_picture(kind):
    rule, (_, image) = seeded(kind).rule, picture()
    intrinsics = [[250.0, 0, 160], [0, 240.0, 50], [0, 0, 1]]
    expected = prepare_image(rule, image).with_camera(square_matrix(intrinsics))
    meta = dict(
        cam2img=intrinsics, ori_shape=image.shape, img_shape=(*expected.img_shape, 3), scale_factor=1.0
    )
    if kind == 'smoke':
        meta['trans_mat'] = AffineResize(SIZE[::-1], 4)(dict(img=image.copy()))['trans_mat']
    prepared = test_loop._prepared(expected.tensor, meta)
    np.testing.assert_allclose(prepared.cam2img, expected.cam2img)
    np.testing.assert_allclose(cameras.camera_of(prepared), expected.cam2img, rtol=1e-6)


@pytest.mark.parametrize('size', [(375, 1242), (301, 77)])
def test_a_warped_picture_is_that_of_affine_resize(size):
    rule = seeded('smoke').rule
    image = picture(height=size[0], width=size[1])[1]
    expected = AffineResize(img_scale=SIZE[::-1], down_ratio=4)(dict(img=image.copy()))
    prepared = prepare_image(dataclasses.replace(rule, mean=(0.0,) * 3, std=(1.0,) * 3, to_rgb=False), image)
    assert np.array_equal(prepared.tensor.transpose(1, 2, 0), expected['img'].astype(np.float32))
    to_map = np.diag([0.25, 0.25, 1]) @ prepared.to_input
    np.testing.assert_allclose(to_map, expected['trans_mat'], atol=1e-5)


def test_cameras_are_read_by_path_by_name_and_for_all():
    matrices = {'a/1.jpg': np.eye(3), 'b/1.jpg': 2 * np.eye(3), '': 3 * np.eye(3)}
    read = cameras_of({name: matrix.tolist() for name, matrix in matrices.items()})
    assert camera_for(read, 'data/b/1.jpg')[0, 0] == 2
    assert camera_for(read, '2.jpg')[0, 0] == 3
    with pytest.raises(DataError, match=r'a/1\.jpg, b/1\.jpg'):
        camera_for(read, 'c/1.jpg')
    listed = cameras_of(dict(images=[dict(file_name='x/3.jpg', cam_intrinsic=np.eye(3).tolist())]))
    assert np.array_equal(camera_for(listed, '/data/3.jpg'), np.eye(4))
    with pytest.raises(DataError, match=r'4\.jpg'):
        camera_for(listed, '4.jpg')
    with pytest.raises(ValueError, match='3x4'):
        cameras_of([[1, 2], [3, 4]])
    images = [dict(file_name='1.jpg', cam_intrinsic=(scale * np.eye(3)).tolist()) for scale in (1, 1, 2)]
    assert cameras_of(dict(images=images[:2]))['1.jpg'][0, 0] == 1
    with pytest.raises(ValueError, match=r'1\.jpg'):
        cameras_of(dict(images=images))
    for row, column, value in ((3, 0, 1.0), (0, 0, -1.0), (0, 0, np.nan), (0, 2, np.inf)):
        camera = np.eye(4)
        camera[row, column] = value
        with pytest.raises(ShapeError, match='cam2img'):
            check_camera(camera)


def test_parts_that_are_registered_with_mmdet_belong_to_the_family_of_their_bases(monkeypatch):
    head, detector = type('MyHead', (SMOKEMono3DHead,), {}), type('MyDetector', (SMOKEMono3D,), {})
    for part in (head, detector):
        monkeypatch.setitem(MMDET_MODELS.module_dict, part.__name__, part)
    cfg = toy('smoke')
    cfg.model.type, cfg.model.bbox_head.type = 'MyDetector', 'MyHead'
    family = find_family(cfg)
    assert family.name == 'smoke' and type(family.build(cfg).bbox_head) is head


def test_what_the_graphs_do_not_reproduce_is_refused_by_its_key():
    changes = [
        ('fcos3d', dict(test_cfg=dict(use_rotate_nms=False)), 'use_rotate_nms'),
        ('fcos3d', dict(test_cfg=dict(max_per_img=-1)), 'max_per_img=-1'),
        ('smoke', dict(bbox_head=dict(dim_channel=[0, 1, 2])), 'dim_channel'),
    ]
    for kind, change, message in changes:
        cfg = toy(kind)
        for part, values in change.items():
            cfg.model[part].update(values)
        with pytest.raises(ConfigError, match=message):
            seeded(kind).family.check(cfg, options(kind))
    cfg = toy('smoke')
    (step,) = steps_of(pipeline_of(cfg), 'AffineResize')
    del step['down_ratio']
    with pytest.raises(ConfigError, match='down_ratio=None'):
        seeded('smoke').family.check(cfg, options('smoke'))
