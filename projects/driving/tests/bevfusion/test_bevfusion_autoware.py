"""BEVFusion of LiDAR alone for Autoware: its file is proven, models without a place are refused."""

import shutil

import onnx
import pytest

import toy_bevfusion
from mm2onnx_driving.autoware.check import check, read_manifest
from mm2onnx_driving.autoware.nodes import BEVFUSION_LIDAR
from mm2onnx_driving.bevfusion import autoware as bevfusion
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.cli.check_app import check_autoware as main
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.contracts import contract_of
from proofs import OF_OTHER_CONTRACTS
from verdicts import cases_of

AUTOWARE = dict(contract='autoware')
CLASSES = ('car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier', 'motorcycle', 'bicycle')


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    folder, classes = tmp_path_factory.mktemp('lidar'), (*CLASSES, 'pedestrian', 'traffic_cone')
    return toy_bevfusion.toy(folder, classes, **toy_bevfusion.alone('lidar'))


@pytest.fixture(scope='module')
def folder(detector, tmp_path_factory):
    place = tmp_path_factory.mktemp('autoware')
    toy_bevfusion.export(detector, place, **AUTOWARE)
    return place


def file(folder):
    return str(folder / f'{bevfusion.LIDAR}.onnx')


@pytest.mark.parametrize('proof', OF_OTHER_CONTRACTS)
def test_the_file_is_proven_through_the_plug_ins_in_numpy(detector, folder, proof):
    frames = list(detector.family.data.generated_sweeps(detector.rule, 1))
    verdict = proof(detector, [file(folder)], frames)
    assert verdict.proven, verdict.failures
    assert verdict.summary()['matched'] >= 30
    assert {row.tensor for row in cases_of(verdict)[0].tensors} == {bevfusion.BEV}


def test_the_node_would_take_the_folder(folder, capsys):
    assert main([str(folder)]) == 0
    assert '3 files, 0 errors, 1 warnings' in capsys.readouterr().out  # three classes of nuScenes
    values, _ = read_manifest(BEVFUSION_LIDAR, folder)
    assert (values['x_bound'], values['y_bound']) == ([-19.2, 19.2, 1.6], [-16.0, 16.0, 1.6])
    model = onnx.load(file(folder))
    graph, plugins = model.graph, [node for node in model.graph.node if node.domain == 'autoware']
    assert [one.name for one in graph.input] == ['voxels', 'num_points_per_voxel', 'coors']
    assert [one.name for one in graph.output] == ['bbox_pred', 'score', 'label_pred']
    assert {node.op_type for node in plugins} == {'GetIndicePairsImplicitGemm', 'ImplicitGemm'}
    for node in plugins:
        names = {entry.name for entry in node.attribute}
        assert names - {'do_sort'} == set(BEVFUSION_LIDAR.plugins[node.op_type])
        assert ('do_sort' in names) == (node.op_type == 'GetIndicePairsImplicitGemm')


def test_a_file_is_told_which_nodes_it_fits(folder, tmp_path):
    def found(where):
        versions = [one for one in check(where)[0] if one.rule == 'version']
        return {(one.attribute, one.severity) for one in versions}

    assert found(folder) == {('do_sort', 'note'), ('act_type', 'note')}
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    model = onnx.load(file(tmp_path))
    for node in model.graph.node:
        for entry in [entry for entry in node.attribute if entry.name == 'do_sort']:
            node.attribute.remove(entry)
    products = next(node for node in model.graph.node if node.op_type == 'ImplicitGemm')
    products.attribute.append(onnx.helper.make_attribute('act_type', 1))
    onnx.save(model, file(tmp_path))
    assert found(tmp_path) == {('do_sort', 'warning'), ('act_type', 'warning'), ('act_type', 'note')}


def test_models_that_the_node_has_no_place_for_are_refused(tmp_path):
    def refused(match, **more):
        cfg = load_config(toy_bevfusion.write_config(tmp_path / 'm.py', **more))
        family = find_family(cfg)
        chosen = family.choose(opset=17, **AUTOWARE)
        with pytest.raises(ConfigError, match=match):
            family.check(cfg, chosen)
            contract_of(family, chosen).check(cfg)

    alone = toy_bevfusion.alone('lidar')
    refused('encoders.camera')
    many = dict(encoders=dict(lidar=dict(voxelize=dict(max_voxels=[1, 300000]))))
    refused('max_voxels=300000', **toy_bevfusion.merged(alone, many))
