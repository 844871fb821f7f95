"""Folders for Autoware's nodes: right ones pass, one broken thing is found, and named, one by one."""

import json

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

import toy_autoware
from mm2onnx_driving.autoware import check as checker
from mm2onnx_driving.autoware import trial
from mm2onnx_driving.autoware.check import check
from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.cli.check_app import check_autoware as main
from mmdeploy_ext.cli.check_app import main as check_any
from toy_autoware import LOST, key, setting

ML = 'ml_package.param.yaml'
REMAPPER = 'detection_class_remapper.param.yaml'
ENCODER, HEAD = 'pts_voxel_encoder.onnx', 'pts_backbone_neck_head.onnx'


@pytest.fixture(autouse=True)
def _tried_here(monkeypatch):
    """Try files in this process: to start one for each folder takes most of the time."""

    def try_here(trials):
        return [found for one in trials for found in trial.try_file(*one)]

    monkeypatch.setattr(checker, 'trial_rules', try_here)


def drop(file):
    return lambda folder: (folder / file).unlink()


def graph_of(file, edit):
    def change(folder):
        model = onnx.load(folder / file)
        edit(model.graph)
        onnx.save(model, folder / file)

    return change


def end(graph, name):
    return next(one for one in (*graph.input, *graph.output) if one.name == name)


def retype(file, name, kind):
    return graph_of(file, lambda graph: setattr(end(graph, name).type.tensor_type, 'elem_type', kind))


def reorder(file, side, *order):
    def edit(graph):
        values = [getattr(graph, side)[place] for place in order]
        del getattr(graph, side)[:]
        getattr(graph, side).extend(values)

    return graph_of(file, edit)


def stored(file, name, array):
    def edit(graph):
        (tensor,) = (one for one in graph.initializer if one.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), name))

    return graph_of(file, edit)


def operator(file, domain):
    def edit(graph):
        graph.node.append(helper.make_node('Odd', [graph.input[0].name], ['odd'], domain=domain, name='odd'))

    return graph_of(file, edit)


def exported_from(file, checkpoint='a', **entries):
    """Add metadata as an export writes them."""

    def edit(model):
        for entry, value in dict(entries, checkpoint_sha256=checkpoint * 64).items():
            model.metadata_props.add(key=f'mm2onnx.{entry}', value=json.dumps(value))

    def change(folder):
        model = onnx.load(folder / file)
        edit(model)
        onnx.save(model, folder / file)

    return change


M, S = 'model_params.', 'model_params.detection_score_thresholds.'
CENTERPOINT = {
    'no manifest': (drop(ML), ML, '', 'missing-file'),
    'version 5.0': (key(ML, 'version', '5.0'), ML, 'version', 'value'),
    'no path of an engine': (key(ML, 'head_engine_path', LOST), ML, 'head_engine_path', 'key'),
    'a path to nothing': (key(ML, 'head_onnx_path', 'x.onnx'), ML, 'head_onnx_path', 'path'),
    'lower case': (key(ML, f'{M}class_names', ['car', 'BICYCLE', 'BUS']), ML, f'{M}class_names', 'class'),
    'a range upside down': (
        key(ML, f'{M}point_cloud_range', [4.0, -2.0, -4.0, -4.0, 2.0, 4.0]),
        ML,
        f'{M}point_cloud_range',
        'value',
    ),
    'a quotient below the whole number': (
        lambda folder: [
            key(ML, f'{M}point_cloud_range', [-49.6, -49.6, -4.0, 49.6, 49.6, 4.0])(folder),
            key(ML, f'{M}voxel_size', [0.2, 0.2, 8.0])(folder),
        ],
        ML,
        f'{M}point_cloud_range',
        'grid',
    ),
    'another grid': (key(ML, f'{M}voxel_size', [0.25, 0.5, 8.0]), HEAD, 'spatial_features', 'shape'),
    'no velocity': (reorder(HEAD, 'output', 0, 1, 2, 3, 4), HEAD, '', 'count'),
    'angles before sizes': (reorder(HEAD, 'output', 0, 1, 2, 4, 3, 5), HEAD, 'rot', 'order'),
    'halves': (retype(HEAD, 'heatmap', TensorProto.FLOAT16), HEAD, 'heatmap', 'type'),
    'an operator of nobody': (operator(HEAD, 'custom'), HEAD, 'odd', 'operator'),
    'sizes as mmdet3d 1.0 has them': (stored(HEAD, 'dim_order', [0, 1, 2]), HEAD, 'rot', 'convention'),
    'another contract': (exported_from(HEAD, options=dict(contract='deploy')), HEAD, '', 'contract'),
    'no remapper': (drop(REMAPPER), ML, 'class_remapper_param_path', 'path'),
}
NAN = np.full((9, 32), np.nan, np.float32)
CENTERPOINT['weights without a number'] = stored(ENCODER, 'w', NAN), ENCODER, 'w', 'not-finite'
VALUES = [
    ('head_engine_path', 'pts_voxel_encoder.engine', 'path'),  # as the other one
    ('encoder_engine_path', '../x.engine', 'path'),
    (f'{M}voxel_size', [1, 1, 8], 'ros-type'),
    (f'{M}yaw_norm_thresholds', [0.0] * 4, 'value'),
    (f'{M}point_feature_size', 5, 'value'),
    (f'{M}class_names', ['CAR', 'CAR', 'BUS'], 'class'),
    (f'{S}min_confidence_scores.CAR', [0.4], 'value'),
    (f'{S}distance_bin_upper_limits', [9.0, 4.0], 'value'),
]
"""Key of the manifest, a wrong value, and the rule that it breaks."""
CENTERPOINT |= {name: (key(ML, name, value), ML, name, rule) for name, value, rule in VALUES}


def plain(folder):
    return toy_autoware.centerpoint(folder, converted=False)


def test_a_right_folder_has_no_finding(tmp_path):
    found, files = check(toy_autoware.centerpoint(tmp_path))
    assert found == [] and len(files) >= 3


@pytest.mark.parametrize('fault', CENTERPOINT)
def test_a_broken_thing_is_found_and_named(tmp_path, fault):
    change, file, attribute, rule = CENTERPOINT[fault]
    change(toy_autoware.centerpoint(tmp_path))
    errors = [one for one in check(tmp_path)[0] if one.severity == 'error']
    where = (file, attribute.split('[')[0], rule)
    assert where in {(one.node, one.attribute, one.rule) for one in errors}, errors
    said = next(one.message for one in errors if (one.node, one.attribute, one.rule) == where)
    assert attribute in said or attribute in ('odd',), said


def test_boxes_that_stay_as_they_are_are_a_warning_since_models_of_0_x_are_right_so(tmp_path, capsys):
    (found,) = check(plain(tmp_path))[0]
    assert (found.node, found.rule, found.severity) == (HEAD, 'convention', 'warning')
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), '--strict']) == 1


WARNED = {
    'a class of nobody': (key(ML, f'{M}class_names', ['CAR', 'CONE', 'BUS']), 'class'),
    'a pillar of half the height': (key(ML, f'{M}voxel_size', [0.5, 0.5, 4.0]), 'grid'),
    'weights of halves': (
        stored(ENCODER, 'w', np.ones((9, 32), np.float16)),
        'precision',
    ),
}


@pytest.mark.parametrize('kind', WARNED)
def test_what_loads_and_is_probably_not_meant_is_a_warning(tmp_path, kind):
    change, rule = WARNED[kind]
    change(toy_autoware.centerpoint(tmp_path))
    assert rule in {one.rule for one in check(tmp_path)[0] if one.severity == 'warning'}


def test_folders_of_no_node_and_of_two_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match='has no file that a node would load'):
        check(tmp_path)
    with pytest.raises(ModelFileError, match='no such folder'):
        check(tmp_path / 'nowhere')
    for name in (ML, 'ml_package_camera_streampetr.param.yaml'):
        (tmp_path / name).touch()
    with pytest.raises(ModelFileError, match='camera_streampetr'):
        check(tmp_path)


def test_values_that_are_not_those_of_the_export_are_errors(tmp_path):
    toy_autoware.centerpoint(tmp_path)
    content = yaml.safe_load((tmp_path / ML).read_text())['/**']['ros__parameters']['model_params']
    cloud, names = content['point_cloud_range'], content['class_names']
    classes = [name.lower() for name in names]
    exported_from(ENCODER, classes=classes, preprocess=dict(point_cloud_range=cloud))(tmp_path)
    exported_from(HEAD, classes=classes)(tmp_path)
    assert check(tmp_path)[0] == []
    lifted = [*cloud[:2], cloud[2] - 1, *cloud[3:5], cloud[5] - 1]
    for attribute, value in (('point_cloud_range', lifted), ('class_names', names[::-1])):
        key(ML, f'model_params.{attribute}', value)(tmp_path)
    rules = [(found.rule, found.attribute) for found in check(tmp_path)[0]]
    assert rules == [('export', 'model_params.point_cloud_range'), ('export', 'model_params.class_names')]


def test_the_command_ends_with_its_verdict_and_graph_py_knows_the_folder(tmp_path, capsys):
    """`main` is all that tools/deployment/check_autoware.py has."""
    toy_autoware.centerpoint(tmp_path)
    assert main([str(tmp_path)]) == 0 and check_any([str(tmp_path)]) == 0
    assert 'autoware, 4 files, 0 errors, 0 warnings' in capsys.readouterr().out
    drop(REMAPPER)(tmp_path)
    target = tmp_path / 'found.json'
    assert main([str(tmp_path), '--json', str(target)]) == 1
    assert json.loads(target.read_text())['violations'][0]['attribute'] == 'class_remapper_param_path'
    assert 'CONTRACT BROKEN' in capsys.readouterr().out
    assert main([str(tmp_path / 'nowhere')]) == 2
    (tmp_path / HEAD).write_bytes(b'no graph')
    assert main([str(tmp_path)]) == 1 and HEAD in capsys.readouterr().out


PARAMETERS, SETTINGS, LIFTED = 'bevdet.param.yaml', 'bevdet.yaml', 'bevdet_one_lt_d.onnx'
CAMERAS = toy_autoware.BEVDET['data_params']['cams']
EXCHANGED = [CAMERAS[1], CAMERAS[0], *CAMERAS[2:]]
BEVDET = {
    'no settings': (drop(SETTINGS), SETTINGS, '', 'missing-file'),
    'mean as B, G, R': (setting('mean', [103.53, 116.28, 123.675]), SETTINGS, 'mean', 'export'),
    'std as B, G, R': (setting('std', [57.375, 57.12, 58.395]), SETTINGS, 'std', 'export'),
    'exchanged cameras': (
        setting('data_config.cams', EXCHANGED),
        SETTINGS,
        'data_config.cams',
        'export',
    ),
    "exchanged cameras of the node's": (
        key(PARAMETERS, 'data_params.cams', EXCHANGED),
        PARAMETERS,
        'data_params.cams',
        'value',
    ),
    'another depth step': (
        setting('grid_config.depth', [1.0, 60.0, 1.0]),
        SETTINGS,
        'grid_config.depth',
        'grid',
    ),
    'another first depth': (
        setting('grid_config.depth', [2.0, 61.0, 0.5]),
        SETTINGS,
        'grid_config.depth',
        'export',
    ),
    'fewer frames before': (setting('adj_num', 7), SETTINGS, 'adj_num', 'export'),
    'another crop': (setting('data_config.crop', [120, 0]), SETTINGS, 'data_config.crop', 'export'),
    'another grid': (setting('grid_config.x', [-51.2, 51.2, 0.4]), SETTINGS, 'grid_config.x', 'grid'),
    'a lost entry': (setting('cam_params_size', None), SETTINGS, 'cam_params_size', 'key'),
    "a path from the node's folder": (key(PARAMETERS, 'onnx_path', LIFTED), PARAMETERS, 'onnx_path', 'path'),
}


@pytest.fixture
def bevdet(tmp_path):
    toy_autoware.bevdet(tmp_path)
    exported_from(LIFTED, **toy_autoware.STATED)(tmp_path)
    return tmp_path


@pytest.mark.parametrize('fault', BEVDET)
def test_settings_of_bevdet_are_read_against_the_file(bevdet, fault):
    assert check(bevdet)[0] == []
    change, file, attribute, rule = BEVDET[fault]
    change(bevdet)
    found = [one for one in check(bevdet)[0] if one.severity == 'error']
    assert (file, attribute, rule) in {(one.node, one.attribute, one.rule) for one in found}, found


def test_bins_that_the_program_cuts_off_are_errors(bevdet):
    """(60.1 - 1) / 0.3 is 197, and 196 in float32."""
    depths = (1 + 0.3 * np.arange(197)).tolist()
    facts = toy_autoware.STATED['postprocess'] | dict(depths=depths)
    toy_autoware.bevdet(bevdet)
    exported_from(LIFTED, **toy_autoware.STATED | dict(postprocess=facts))(bevdet)
    setting('grid_config.depth', [1.0, 60.1, 0.3])(bevdet)
    assert [(one.attribute, one.rule) for one in check(bevdet)[0]] == [('grid_config.depth', 'grid')]


NODES = {
    'as upstream': (('debug_mode', 'data_params.camera_count'), ['data_params.camera_count', 'debug_mode']),
    'newest': (('data_params.CAM_NUM',), []),
}
"""Node -> keys that its file lacks, keys of a warning that it fits older nodes alone."""


@pytest.mark.parametrize('node', NODES)
def test_parameters_of_older_and_of_newer_nodes_are_accepted(bevdet, node):
    lost, warned = NODES[node]
    for name in lost:
        key(PARAMETERS, name, LOST)(bevdet)
    found = check(bevdet)[0]
    assert sorted(one.attribute for one in found) == warned
    assert {(one.rule, one.severity) for one in found} <= {('version', 'warning')}


def test_a_threshold_that_was_tuned_and_halves_are_warnings(bevdet):
    setting('test_cfg.score_threshold', 0.3)(bevdet)
    key(PARAMETERS, 'precision', 'fp16')(bevdet)
    found = {(one.attribute, one.severity) for one in check(bevdet)[0]}
    assert found == {('test_cfg.score_threshold', 'warning'), ('precision', 'warning')}
