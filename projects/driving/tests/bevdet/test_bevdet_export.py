"""BEVDet's contracts: proven as streams; faults in graphs and runtime are not."""

import dataclasses
import functools
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
import yaml
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from onnx import helper
from pyquaternion import Quaternion

import bevdet_golden as golden
import toy_frames
from eager_files import eager_row, names_of
from marking import in_suite
from mm2onnx_driving import plugin_bevdet as kernels
from mm2onnx_driving.autoware.check import read_manifest
from mm2onnx_driving.autoware.nodes import BEVDET
from mm2onnx_driving.bevdet.plugins import (
    camera_vectors,
    grey_levels,
    normalised,
    picture_places,
)
from mm2onnx_driving.bevdet.plugins_export import BevDetFiles, CppFiles, PoolFiles, align, prepare
from mm2onnx_driving.bevdet.runtime import BevDetOnnx, cell_motion, warp
from mm2onnx_driving.common.lift import view_axes
from mm2onnx_driving.common.runtime.lift_splat import border_points, frustum_places, rig_in_key_ego
from mm2onnx_driving.plugin_bevdet import intervals, point_cells
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.common.runtime.center_boxes import decode
from mmdeploy_ext.families.detector import check_options
from mmdeploy_ext.families.synthetic.drive import synthetic_drive
from mmdeploy_ext.runtime.infos import RigFrame, pose_of
from mmdeploy_ext.spec.metadata import read_metadata
from mmdeploy_ext.upstream.operators.operator import OPERATORS, operators_as
from planting import replaced
from proofs import drive_row, prove

TOYS = dict(bevdet=toy_frames.BEVDET, bevdet4d=toy_frames.BEVDET4D)


@pytest.fixture(scope='module')
def deployed(tmp_path_factory):
    """Toy -> its model with weights, made when it is asked for."""
    return functools.cache(lambda name: TOYS[name].load(tmp_path_factory.mktemp(name)))


@pytest.fixture(scope='module')
def exports(deployed, tmp_path_factory):
    """(toy, contract) -> paths of its files, exported when they are asked for."""

    @functools.cache
    def export(name, contract='portable'):
        folder = tmp_path_factory.mktemp(f'{name}_{contract}')
        return TOYS[name].export(deployed(name), folder, contract=contract)

    return export


@functools.cache
def facts_of_grid(name):
    cfg = load_config(golden.CONFIGS[name])
    cfg.model.img_backbone.depth = 18  # the facts are of the view and of the head
    return FAMILIES['bevdet'].facts(FAMILIES['bevdet'].build(cfg))


def drive(detector, frames=4):
    return synthetic_drive(frames, detector.rule, scenes=2)


CONTRACTS = [
    ('bevdet', 'portable'),
    ('bevdet', 'trt-plugin'),
    ('bevdet4d', 'portable'),
    ('bevdet4d', 'bevdet-cpp'),
]


@pytest.mark.parametrize(('name', 'contract'), in_suite(CONTRACTS, ('bevdet4d', 'portable')))
def test_the_files_are_proven_as_a_stream(deployed, exports, name, contract):
    verdict = prove(deployed(name), exports(name, contract), drive(deployed(name)))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] == verdict.summary()['reference'] >= 20


def read_contract(spec, start):
    """Return the file of a program that `start` begins the name of, after its tensors were compared."""
    content = json.loads((golden.require_golden() / 'contract.json').read_text())['graphs']
    expected = next(entry for name, entry in content.items() if name.startswith(start))
    for actual, side in zip(names_of(spec), ('inputs', 'outputs'), strict=True):
        assert actual == [(entry['name'], len(entry['shape'])) for entry in expected[side]]
    return expected


PROGRAMS = {'trt-plugin': 'U.bevdet_r50', 'bevdet-cpp': 'X.bevdet_one'}
"""Contract of a program -> begin of the name of its file."""
EAGER = [('bevdet', 'portable'), ('bevdet', 'trt-plugin'), ('bevdet4d', 'bevdet-cpp')]


@pytest.mark.parametrize(('name', 'contract'), EAGER)
def test_the_loops_of_programs_give_the_results_of_pytorch(deployed, tmp_path, name, contract):
    """The view of `bevdet` is no square."""
    row, specs = eager_row(deployed(name), tmp_path, drive(deployed(name), 3), contract=contract)
    assert row.passed and row.matched >= 15, row.reasons
    if contract in PROGRAMS:
        read_contract(*specs.values(), PROGRAMS[contract])


def test_parameters_beside_the_file_are_those_of_the_model(deployed, tmp_path):
    detector = deployed('bevdet4d')
    for name, text in BevDetFiles(detector.family).companions(detector.model).items():
        (tmp_path / name).write_text(text)
    (tmp_path / 'bevdet_one_lt_d.onnx').touch()
    values, violations = read_manifest(BEVDET, tmp_path)
    assert [violation.rule for violation in violations] == ['class']  # its toy has a class of no node
    assert values['data_params.cams'] == list(detector.rule.cameras)
    assert values['data_params.CAM_NUM'] == values['data_params.camera_count'] == 6
    assert values['onnx_path'] == 'bevdet_one_lt_d.onnx' and 'model_config' not in values
    settings = yaml.safe_load((tmp_path / BEVDET.settings).read_text())
    side, given = [-12.8, 12.8, 0.8], detector.cfg.model.test_cfg.pts
    for entry, expected in {
        'grid_config': dict(x=side, y=side, z=[-5.0, 3.0, 8.0], depth=[1.0, 61.0, 3.0]),
        'data_config': dict(src_size=[198, 352], input_size=[96, 176], crop=[3, 0]),
        'model': dict(bevpool_channels=16, down_sample=16),
        'test_cfg': dict(max_per_img=60, score_threshold=0.1, nms_rescale_factor=given.nms_rescale_factor),
    }.items():
        assert {name: settings[entry][name] for name in expected} == expected
    assert (settings['sampling'], settings['adj_num'], settings['mean']) == (
        'nearest',
        2,
        [*detector.rule.mean],
    )


@pytest.mark.matrix
def test_the_plugin_is_that_of_the_converter(exports):
    graph = onnx.load(exports('bevdet', 'trt-plugin')[0]).graph
    (node,) = (node for node in graph.node if node.op_type == 'bev_pool_v2')
    sizes = {entry.name: entry.i for entry in node.attribute if entry.name.startswith('out_')}
    assert node.domain == 'mmdeploy' and sizes == dict(out_height=24, out_width=32)


@pytest.mark.matrix
def test_plugins_are_those_of_bevdet_tensorrt_cpp(exports):
    path = exports('bevdet4d', 'bevdet-cpp')[0]
    graph, stated = onnx.load(path).graph, read_contract(read_metadata(path).spec, 'X.bevdet_one')['plugins']
    for node in (node for node in graph.node if node.domain == 'bevdet'):
        assert f'bevdet::{node.op_type}(' in stated
        given = {entry.name for entry in node.attribute if not entry.name.startswith('plugin_')}
        assert given == PLUGIN_FIELDS[node.op_type]


PLUGIN_FIELDS = dict(
    Preprocess={'crop_h', 'crop_w', 'resize_radio'}, BEVPool={'bev_h', 'bev_w', 'n'}, AlignBEV=set(),
    GatherBEV=set(),
)  # fmt: skip


@pytest.mark.parametrize(('name', 'files'), [('bevdet', CppFiles), ('bevdet4d', PoolFiles)])
def test_programs_take_models_with_or_without_a_memory_alone(name, files):
    with pytest.raises(ConfigError, match='BEVDepth4D'):
        files(FAMILIES['bevdet']).check(load_config(TOYS[name].config))


DEPTHS = 'model.img_view_transformer.grid_config.depth'
OTHERS = {
    'bins that the program cuts off': ({DEPTHS: [1.0, 60.0, 0.3]}, 'depth'),
    'a threshold for each task': (
        {
            'model.test_cfg.pts.nms_thr': [0.2, 0.5],
            'model.pts_bbox_head.tasks': [dict(num_class=5, class_names=[*'abcde'])] * 2,
        },
        'nms_thr',
    ),
    'circles': ({'model.test_cfg.pts.nms_type': ['circle']}, 'nms_type'),
    'pictures of another scale': ({'data.test.pipeline.0.data_config.resize_test': 0.1}, 'input_size'),
}
"""What the program has no place for -> (changes of the config, the key)."""


@pytest.mark.parametrize('other', OTHERS)
def test_what_the_program_has_no_place_for_is_refused(other):
    changes, key = OTHERS[other]
    with pytest.raises(ConfigError, match=key):
        CppFiles(FAMILIES['bevdet']).check(load_config(TOYS['bevdet4d'].config, changes))


def test_the_node_takes_cameras_in_the_order_of_its_topics():
    cfg = load_config(TOYS['bevdet4d'].config)
    BevDetFiles(FAMILIES['bevdet']).check(cfg)
    cameras = cfg.data.test.pipeline[0].data_config.cams
    cameras[:2] = cameras[1::-1]
    with pytest.raises(ConfigError, match='cameras'):
        BevDetFiles(FAMILIES['bevdet']).check(cfg)


def test_vectors_and_transforms_are_the_deployments():
    facts, inputs = facts_of_grid('lt'), golden.frame('lt_f0')
    rule = FAMILIES['bevdet'].preprocess_rule(load_config(golden.CONFIGS['lt']))
    vectors = camera_vectors(rule, inputs['sensor2ego'][0], inputs['intrin'])
    np.testing.assert_allclose(vectors, inputs['deploy_cam_params'], rtol=0, atol=1e-4)
    now, *slots = inputs['lidar_time_ego2global'].astype(np.float64)
    moved = [cell_motion(facts, np.eye(4), np.linalg.inv(now) @ slot)[:2].ravel() for slot in slots]
    stored = golden.arrays('outputs')['lt_f0_deploy_transforms']
    np.testing.assert_allclose(np.stack(moved), stored, rtol=0, atol=1e-3)


def test_the_first_cameras_ego_frame_is_that_of_boxes():
    rule = FAMILIES['bevdet'].preprocess_rule(load_config(golden.CONFIGS['lt']))
    rng, cameras = np.random.default_rng(0), {name: dict(data_path='x.jpg') for name in rule.cameras}
    for camera, pose in itertools.product(cameras.values(), ('sensor2ego', 'ego2global')):
        camera[f'{pose}_rotation'] = list(Quaternion(rng.normal(size=4)).unit)
        camera[f'{pose}_translation'] = rng.normal(size=3).tolist()
    unit = np.tile(np.eye(3), (6, 1, 1))
    rig = RigFrame('a', (), unit, np.eye(4), np.eye(4), 0.0, None, dict(cams=cameras))
    moved = rig_in_key_ego(rig, rule)
    first, *_, last = (
        [pose_of(camera, '', pose) for pose in ('sensor2ego', 'ego2global')] for camera in cameras.values()
    )
    np.testing.assert_allclose(np.linalg.inv(moved.lidar2img[0]), first[0], rtol=0, atol=1e-6)
    found = moved.ego_pose @ np.linalg.inv(moved.lidar2img[5])
    np.testing.assert_allclose(found, last[1] @ last[0], rtol=0, atol=1e-6)


def test_grey_levels_are_normalised_there_and_back():
    rule = FAMILIES['bevdet'].preprocess_rule(load_config(golden.CONFIGS['lt']))
    levels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 6), np.uint8)
    images = (levels - np.array(rule.mean)[:, None, None]) / np.array(rule.std)[:, None, None]
    assert np.array_equal(grey_levels(images, rule), levels)
    np.testing.assert_allclose(normalised(levels, rule), images, atol=1e-6)
    assert grey_levels(images + 99, rule).min() == 255


def test_the_plugin_takes_the_nearest_pixels_of_a_picture():
    rule = FAMILIES['bevdet'].preprocess_rule(load_config(golden.CONFIGS['lt']))
    rows, columns = picture_places(rule)
    assert rows.tolist() == [math.floor((row + 140) / 0.44 + 0.5) for row in range(256)]
    assert columns.tolist() == [math.floor(column / 0.44 + 0.5) for column in range(704)]


PLUGINS = dict(
    BevDetPreprocess=(kernels.preprocess, dict(crop_h=3, crop_w=0, resize_radio=0.5)),
    BevDetBEVPool=(kernels.pool_first, dict(bev_h=2, bev_w=3, n=1)),
    BevDetAlignBEV=(kernels.align, {}),
    BevDetGatherBEV=(kernels.gather, {}),
)
"""Operator -> its kernel in numpy, and attributes."""


@pytest.mark.parametrize('name', PLUGINS)
def test_plugins_in_numpy_give_the_results_of_pytorch(name):
    kernel, attributes = PLUGINS[name]
    inputs = list(OPERATORS[name].example())
    if name == 'BevDetPreprocess':
        inputs[0] = torch.randint(-(2**31), 2**31 - 1, (2, 3, 10, 3), dtype=torch.int32)
    sizes = (2, 6) if name == 'BevDetPreprocess' else ()
    expected = OPERATORS[name].eager(*inputs, *attributes.values(), *sizes)
    actual = kernel(*(value.numpy() for value in inputs), **attributes)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.matrix
@pytest.mark.parametrize('prefix', ['r50_f0', 'r50_f1', 'lt_f0'])
def test_intervals_are_upstreams(prefix):
    stored, frame = golden.arrays('outputs'), golden.frame(prefix)
    facts = facts_of_grid(prefix[:3].rstrip('_'))
    crop = np.diag([*frame['post_rot'][0].diagonal()[:2], 1.0]).astype(np.float64)
    crop[:2, 2] = frame['post_tran'][0, :2]
    cells = point_cells(facts, frame['sensor2keyego'].reshape(-1, 6, 4, 4)[0], frame['intrin'], crop)
    ambiguous = stored[f'{prefix}_cell_ambiguous'].astype(np.int64)
    cells[ambiguous] = stored[f'{prefix}_cell_ambiguous_cell']
    tables = intervals(facts, cells)
    for name, step in dict(ranks_bev=997, ranks_depth=997, ranks_feat=997, interval_starts=97).items():
        np.testing.assert_array_equal(tables[name][::step], stored[f'{prefix}_{name}_{step}'])


def test_points_that_upstream_puts_into_another_cell_are_at_borders():
    stored, frame, facts = golden.arrays('outputs'), golden.frame('lt_f0'), facts_of_grid('lt')
    rule = FAMILIES['bevdet'].preprocess_rule(load_config(golden.CONFIGS['lt']))
    rig = facts, frame['sensor2keyego'][0], frame['intrin'], rule.crop_matrix().astype(np.float64)
    ambiguous, cells = stored['lt_f0_cell_ambiguous'].astype(np.int64), point_cells(*rig)
    moved = ambiguous[cells[ambiguous] != stored['lt_f0_cell_ambiguous_cell']]
    found = border_points(facts, frustum_places(*rig))
    assert len(moved) and found[moved].all() and found.sum() < 500


@pytest.mark.parametrize('name', ['r50_f0', 'lt_f0'])
def test_numpy_decodes_and_suppresses_as_upstream(name):
    maps = {f'{key}_0': value[None] for key, value in golden.head_maps(name).items()}
    found, stored = decode(maps, facts_of_grid(name[:3].rstrip('_'))), golden.arrays('outputs')
    np.testing.assert_allclose(found.boxes, stored[f'{name}_boxes_3d'], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.scores, stored[f'{name}_scores_3d'], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.labels, stored[f'{name}_labels_3d'])


class Prepared(torch.nn.Module):
    def forward(self, images, mean, std):
        return prepare(images, mean, std, 140, 0, 0.44, 256, 704)


@pytest.mark.parametrize('exporter', ['torchscript', 'dynamo'])
def test_the_preprocessing_plugin_is_written_at_the_published_size(exporter):
    inputs = torch.zeros(1, 3, 900, 400, dtype=torch.int32), torch.zeros(3), torch.ones(3)
    with operators_as('plugin'):
        model = export_module(Prepared(), inputs, exporter=exporter, opset=18, output_names=('out',))
    (node,) = (node for node in model.graph.node if node.domain == 'bevdet')
    fields = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    assert {name: fields[name] for name in PLUGIN_FIELDS['Preprocess'] - {'resize_radio'}} == dict(
        crop_h=140, crop_w=0
    )
    assert [axis.dim_value for axis in model.graph.output[0].type.tensor_type.shape.dim] == [1, 3, 256, 704]


class Aligned(torch.nn.Module):
    def forward(self, views, transforms):
        return align(views, transforms)


def test_the_plugins_are_written_at_the_opsets_of_their_programs():
    with operators_as('plugin'):
        model = export_module(Aligned(), OPERATORS['BevDetAlignBEV'].example(), opset=13)
    assert [node.op_type for node in model.graph.node] == ['AlignBEV']


@pytest.mark.parametrize(
    ('name', 'contract', 'default'),
    [('bevdet4d', 'bevdet-cpp', 17), ('bevdet', 'trt-plugin', 17), ('bevdet4d', 'portable', 18)],
)
def test_files_with_plugins_need_no_later_opset(deployed, name, contract, default):
    detector = deployed(name)

    def resolved(opset):
        options = detector.family.choose(contract=contract, opset=opset)
        return check_options(options, detector.cfg, detector.family, detector.model).opset

    assert resolved(0) == default
    if default == 17:
        assert resolved(13) == 13
    else:
        with pytest.raises(UsageError, match='ScatterElements'):
            resolved(13)


TWO_TASKS = {
    'model.pts_bbox_head.tasks': [dict(num_class=5, class_names=[*'abcde'])] * 2,
    'model.test_cfg.pts.nms_type': 'rotate',
    'model.test_cfg.pts.nms_thr': [0.05, 0.6],
    'model.test_cfg.pts.nms_rescale_factor': 1.0,
}


@pytest.mark.parametrize('kinds', ['rotate', ['circle', 'rotate']])
def test_each_task_is_suppressed_by_its_own_kind_and_threshold(kinds):
    changes = {'model.test_cfg.pts.nms_type': kinds, 'model.test_cfg.pts.min_radius': [25.0, 1.0]}
    cfg = load_config(TOYS['bevdet4d'].config, TWO_TASKS | changes)
    model, generator = FAMILIES['bevdet'].build(cfg), torch.Generator().manual_seed(0)
    sizes = dict(reg=2, height=1, dim=3, rot=2, vel=2, heatmap=5)
    tasks = [
        [{name: torch.rand(1, size, 16, 16, generator=generator) for name, size in sizes.items()}]
        for _ in range(2)
    ]
    ((boxes, scores, labels),) = model.pts_bbox_head.get_bboxes(
        tasks, [dict(box_type_3d=LiDARInstance3DBoxes)]
    )
    maps = {f'{name}_{task}': value.numpy() for task in (0, 1) for name, value in tasks[task][0].items()}
    facts = FAMILIES['bevdet'].facts(model)
    found = decode(maps, type(facts).from_json(facts.to_json()))
    order = scores.argsort(descending=True, stable=True)
    np.testing.assert_allclose(found.boxes, boxes.tensor[order].numpy(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.labels, labels[order])
    counts = [(found.labels < 5).sum(), (found.labels >= 5).sum()]
    assert counts[0] < counts[1]  # the second threshold leaves more boxes


@pytest.mark.parametrize('key', ['nms_type', 'nms_thr'])
def test_settings_for_fewer_tasks_than_there_are_are_refused(key):
    test = {f'model.test_cfg.pts.{key}': [dict(nms_type='rotate', nms_thr=0.2)[key]]}
    with pytest.raises(ConfigError, match=f'{key}.*2 tasks'):
        FAMILIES['bevdet'].build(load_config(TOYS['bevdet4d'].config, TWO_TASKS | test))


def test_the_warp_is_upstreams():
    facts = facts_of_grid('lt')
    poses, expected = golden.frame('lt_f0')['sensor2keyego'].astype(np.float64), golden.arrays('outputs')
    cells = np.stack([*np.meshgrid(np.arange(0, 128, 8), np.arange(0, 128, 8)), np.ones((16, 16))], -1)
    for index in range(8):
        grid = cells @ warp(facts, poses[0, 0], poses[index + 1, 0]).T
        np.testing.assert_allclose(grid, expected['lt_f0_grid_slice'][index], rtol=0, atol=2e-6)


def test_a_view_of_unequal_sides_is_warped_by_its_own():
    facts = SimpleNamespace(grid_low=(-10.0, -3.0, 0.0), grid_step=(0.5, 0.25, 8.0), grid_count=(40, 24, 1))
    turned, last = np.eye(4), np.array([39, 23, 1])
    np.testing.assert_allclose(warp(facts, np.eye(4), np.eye(4)) @ last, [1, 1], atol=1e-6)
    turned[:2, :2] = [[0, -1], [1, 0]]
    metres = np.array([39 * 0.5 - 10, 23 * 0.25 - 3])
    source = (np.array([-metres[1], metres[0]]) - facts.grid_low[:2]) / facts.grid_step[:2]
    np.testing.assert_allclose(cell_motion(facts, turned, np.eye(4))[:2] @ last, source)
    transformer = SimpleNamespace(grid_size=torch.tensor([40.0, 24, 1]), out_channels=8)
    assert view_axes(SimpleNamespace(img_view_transformer=transformer)) == (8, 24, 40)


FAULTS = {
    'the motion of the car inverse': (
        'mm2onnx_driving.bevdet.runtime:relative_motion',
        lambda original: lambda last, present: original(present, last),
    ),
    'NMS without the factors of classes': (
        'mmdeploy_ext.families.common.runtime.center_boxes:suppress',
        lambda original: (
            lambda boxes, task, rule: original(boxes, task, dataclasses.replace(rule, nms_scale=()))
        ),
    ),
}
"""What is wrong -> (place of a public name, the change)."""


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_in_our_own_code_is_not_proven(deployed, exports, fault):
    with replaced(*FAULTS[fault]):
        frames = drive(deployed('bevdet4d'), 6)
        assert not drive_row(deployed('bevdet4d'), exports('bevdet4d'), frames).passed


@pytest.mark.matrix
@pytest.mark.parametrize(
    'change',
    [dict(to_rgb=True), dict(cameras=('CAM_FRONT', 'CAM_FRONT_LEFT'))],
    ids=['R, G, B', 'camera order'],
)
def test_a_wrong_rule_of_pictures_is_not_proven(deployed, tmp_path, change):
    detector = deployed('bevdet')
    if 'cameras' in change:
        names = detector.rule.cameras
        change = dict(cameras=(names[1], names[0], *names[2:]))
    wrong = dataclasses.replace(detector, rule=dataclasses.replace(detector.rule, **change))
    verdict = prove(detector, TOYS['bevdet'].export(wrong, tmp_path), drive(detector))
    assert not verdict.passed


@pytest.mark.matrix
def test_intervals_of_another_rig_are_not_proven(deployed, exports):
    """The frames with one thing of the rig changed show it."""
    detector, kept = deployed('bevdet'), {}

    def stale(original):
        return lambda self, *rig: kept.setdefault('tables', original(self, *rig))

    with replaced('mm2onnx_driving.plugin_bevdet:PoolLoop.tables', stale):
        verdict = prove(detector, exports('bevdet', 'trt-plugin'), drive(detector))
    assert not verdict.passed


def test_centerpoints_head_on_pictures_is_bevdets():
    cfg = load_config(TOYS['bevdet'].config)
    assert find_family(cfg).name == 'bevdet'
    cfg.model.img_view_transformer.accelerate = True
    with pytest.raises(ConfigError, match='accelerate'):
        FAMILIES['bevdet'].build(cfg)


def test_poses_of_missing_frames_stay_as_they_are(deployed, exports):
    frame, second = synthetic_drive(2, deployed('bevdet4d').rule, scenes=1)
    runner = BevDetOnnx(exports('bevdet4d'))
    runner.step(frame)
    kept, moved = runner.state.tensors, runner.moved_memory(second, runner.state)
    missing = kept['exists'] == 0
    assert missing.any() and (moved['camera2ego'][missing] == np.eye(4)).all()
    assert not (moved['camera2ego'][~missing] == kept['camera2ego'][~missing]).all()
