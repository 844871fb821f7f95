"""The family: which configs it takes and refuses, frames of the loader, results, dumps, the reference."""

from types import SimpleNamespace

import numpy as np
import pytest
from mmcv import Config
from mmcv.parallel import DataContainer

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_streampetr as toy
import toy_streampetr_deploy as deployed
import toy_streampetr_export as exported
from mm2onnx_driving.streampetr.family import StreamPetrFamily
from mm2onnx_driving.streampetr.graphs import sizes
from mmdeploy_ext.base.dump import load_dump, save_dump
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.source_code import has_known_modules, model_classes
from mmdeploy_ext.base.taps import collect_taps
from mmdeploy_ext.families.base import find_family
from projects.configs.nuscenes_stream import image_augmentation
from projects.configs.nuscenes_stream import test_pipeline as stream_pipeline

FAMILY = StreamPetrFamily()


def config(size=(toy.HEIGHT, toy.WIDTH), head=None, **changes):
    """Return the toy's config; `changes` are of the detector, `head` of the 3D head."""
    image = image_augmentation(size, (0.5, 0.6), source=(90, 160))
    model = toy.model_cfg(head=head, **changes)
    content = dict(model=model, data=dict(test=dict(pipeline=stream_pipeline(image))))
    return Config(content, cfg_text=str(content), filename='toy.py')


def decoder(**changes):
    transformer = toy.pts_head()['transformer']
    return dict(transformer=dict(transformer, decoder=dict(transformer['decoder'], **changes)))


def test_it_claims_its_configs_and_builds_them_with_the_sizes_of_the_pipeline():
    assert find_family(config()).name == 'streampetr'
    assert FAMILY.claims(config(type='Petr3DONNX'))
    assert not FAMILY.claims(Config(dict(model=dict(type='ATSS', bbox_head=dict(type='ATSSHead')))))
    cfg = config()
    FAMILY.check(cfg, FAMILY.choose())
    model = FAMILY.build(cfg)
    assert model.input_sizes == (6, toy.HEIGHT, toy.WIDTH)
    assert FAMILY.num_classes(model) == toy.NUM_CLASSES
    assert not model.training


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(aux_2d_only=False), 'model.aux_2d_only=False'),
        (dict(head=decoder(post_norm_cfg=None)), 'decoder.post_norm_cfg is None'),
    ],
)
def test_configs_are_refused_by_name(cfg, message):
    with pytest.raises(ConfigError, match=message):
        FAMILY.check(config(**cfg), FAMILY.choose())


def test_a_size_that_is_no_multiple_of_the_stride_is_refused():
    for stride in (48, 64):  # divides the height or the width of 96 x 256
        with pytest.raises(ConfigError, match=f'stride {stride}'):
            FAMILY.check(config(stride=stride), FAMILY.choose())


def test_sizes_and_facts_of_unequal_numbers_of_queries():
    decoder = SimpleNamespace(layers=[None] * 3, return_intermediate=True)
    coder = SimpleNamespace(max_num=7, post_center_range=[-1, -2, -3, 4, 5, 6], score_threshold=0.2)
    head = SimpleNamespace(
        stride=16, depth_num=64, embed_dims=96, num_query=30, num_propagated=7, cls_out_channels=5,
        num_classes=5, code_size=10, memory_len=40, topk_proposals=9, bbox_coder=coder,
        transformer=SimpleNamespace(decoder=decoder),
    )  # fmt: skip
    model = SimpleNamespace(pts_bbox_head=head)
    size, facts = sizes(model, 6, 96, 256), FAMILY.facts(model)
    assert (size.queries, size.state, size.tokens, size.layers) == (37, 49, 6 * 6 * 16, 3)
    assert sizes(model, 6, 96, 256, 'last').layers == 1
    assert (facts.memory_len, facts.topk_proposals, facts.num_propagated) == (40, 9, 7)
    assert (facts.max_num, facts.score_threshold) == (7, 0.2)


def test_a_sample_of_the_loader_is_a_frame_whatever_wraps_it():
    data = toy.test_inputs(1, scene_token='night')
    data['img_metas'][0][0].update(sample_idx='token', filename=['a.jpg', 'b.jpg'])
    wrapped = {key: [DataContainer([value[0]])] for key, value in data.items()}
    for sample in (data, wrapped):
        frame = FAMILY.data.frame(sample)
        assert (frame.scene_token, frame.name, frame.image_files) == ('night', 'token', ('a.jpg', 'b.jpg'))
        assert frame.timestamp_s == toy.T0 + 0.5
        np.testing.assert_array_equal(frame.images, data['img'][0][0].numpy())
        np.testing.assert_array_equal(frame.ego_pose_inv, data['ego_pose_inv'][0][0].numpy())
        for name in ('lidar2img', 'intrinsics'):
            assert getattr(frame, name).dtype == np.float64
            np.testing.assert_array_equal(getattr(frame, name), data[name][0][0].numpy())


@pytest.fixture(scope='module')
def reference():
    return FAMILY.reference(deployed.detector().model)


@pytest.fixture(scope='module')
def frames():
    return [exported.frame(index) for index in range(3)]


def test_the_reference_is_the_detectors_own_test_path(reference, frames):
    reference.reset()
    for frame, wanted in zip(frames, exported.eager(frames), strict=True):
        found = reference.step(frame)
        np.testing.assert_array_equal(found.outputs['all_cls_scores'], wanted['all_cls_scores'])
        np.testing.assert_array_equal(found.outputs['all_bbox_preds'], wanted['all_bbox_preds'])
        order = np.argsort(-wanted['scores'], kind='stable')
        np.testing.assert_array_equal(found.detections.boxes, wanted['boxes'][order])
        assert found.was_reset == (frame is frames[0])


def test_its_state_is_local_and_goes_on_where_it_was_taken(reference, frames):
    reference.reset()
    assert reference.state is None
    reference.step(frames[0])
    state = reference.state
    assert np.abs(state.tensors['reference_point']).max() < 100.0  # the map's origin is 1600 m away
    assert (state.tensors['timestamp'] == 0).all()
    wanted = reference.step(frames[1])
    reference.step(exported.frame(0, 'elsewhere'))
    reference.state = state
    found = reference.step(frames[1])
    assert not found.was_reset
    for name in ('all_cls_scores', 'all_bbox_preds'):
        np.testing.assert_allclose(found.outputs[name], wanted.outputs[name], atol=2e-3)
    reference.state = None
    assert reference.step(frames[1]).was_reset


def test_a_dump_gives_the_frame_back(reference, frames, tmp_path):
    model = deployed.detector().model
    reference.reset()
    reference.step(frames[0])
    with collect_taps() as taps:
        reference.step(frames[1])
    tensors = FAMILY.data.dump_tensors(model, taps)
    save_dump(tmp_path, tensors, dict(scene_token='scene0', frame='f'), suffixes=FAMILY.data.dump_suffixes)
    found, manifest = load_dump(tmp_path)
    frame = FAMILY.data.dumped_frame(found, manifest)
    for field in ('images', 'lidar2img', 'intrinsics', 'ego_pose', 'timestamp_s', 'scene_token'):
        np.testing.assert_array_equal(getattr(frame, field), getattr(frames[1], field))


def test_its_classes_are_ours_and_not_the_users():
    model = deployed.detector().model
    assert has_known_modules(model) and model_classes(model)
    assert all(one.ours for one in model_classes(model))
