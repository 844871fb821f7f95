"""CUDA-BEVFusion's files: the contract's names and shapes, proven on frames of other rigs, faults refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import bevfusion_golden
import toy_bevfusion
from mm2onnx_driving.bevfusion import cuda_loop as cuda
from mm2onnx_driving.bevfusion.cuda_folder import check
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.cli.graph_app import main
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.runtime.tasks.bbox3d import match_detections
from proofs import prove
from verdicts import cases_of

CONTRACT = dict(contract='cuda-bevfusion')


@pytest.fixture(scope='module')
def detector():
    return toy_bevfusion.whole()[0]


@pytest.fixture(scope='module')
def folder(detector, tmp_path_factory):
    place = tmp_path_factory.mktemp('cuda')
    toy_bevfusion.export(detector, place, **CONTRACT)
    return place


@pytest.fixture(scope='module')
def frames():
    return toy_bevfusion.whole()[1]


def paths(folder):
    return [str(folder / f'{name}.onnx') for name in cuda.GRAPHS]


@pytest.mark.matrix
def test_the_files_are_proven_on_frames_of_other_rigs(detector, folder, frames):
    verdict = prove(detector, paths(folder), frames[1:])
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] >= 30 and len(cases_of(verdict)[0].tensors) == 10


def test_boxes_of_the_files_are_those_of_pytorch(detector, folder, frames):
    expected = detector.family.reference(detector.model).step(frames[1]).detections
    with cuda.CudaBEVFusion(folder) as runtime:
        row = match_detections('frame', expected, runtime.step(frames[1]).detections)
    assert row.passed and row.matched >= 30, row


def changed(path, change):
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def test_names_shapes_and_types_are_those_of_the_contract():
    cfg = load_config(str(bevfusion_golden.CONFIG))
    family = find_family(cfg)
    options = family.choose(**CONTRACT)
    graphs = contract_of(family, options).graphs(family.build(cfg), options)
    made = {graph.name: graph for graph in graphs}
    for file, wanted in json.loads(bevfusion_golden.existing('contract.json').read_text())['graphs'].items():
        graph = made[file.removesuffix('.onnx')]
        for side in ('inputs', 'outputs'):
            for tensor, facts in zip(getattr(graph.spec, side), wanted[side], strict=True):
                assert tensor.dtype == facts['dtype'].lower().replace('float', 'float32').replace(
                    'float3216', 'float16'
                )
                assert tensor.name == facts.get('name', tensor.name)
                assert [1 if size == 'n' else size for size in facts['shape']] == list(tensor.axes)
    assert options.fixed['opset'] == ('contract', 13)


# ---- the reader of anybody's files


def drop(name):
    return lambda folder: (folder / f'{name}.onnx').unlink()


def rename(name, one, other):
    def change(model):
        for value in (*model.graph.input, *model.graph.output):
            value.name = other if value.name == one else value.name
        for node in model.graph.node:
            node.input[:] = [other if value == one else value for value in node.input]
            node.output[:] = [other if value == one else value for value in node.output]

    return lambda folder: changed(folder / f'{name}.onnx', change)


def retype(name, tensor, kind):
    def change(model):
        (value,) = (one for one in (*model.graph.input, *model.graph.output) if one.name == tensor)
        value.type.tensor_type.elem_type = kind

    return lambda folder: changed(folder / f'{name}.onnx', change)


BROKEN = {
    'no head': (drop('head.bbox'), 'head.bbox.onnx', 'missing-file'),
    'another name': (rename('head.bbox', 'reg', 'center'), 'head.bbox.onnx', 'name'),
    'whole numbers': (retype('head.bbox', 'score', onnx.TensorProto.INT64), 'head.bbox.onnx', 'type'),
}
WARNED = {'float16': (retype('fuser', 'middle', onnx.TensorProto.FLOAT16), 'fuser.onnx', 'type')}


@pytest.fixture
def copied(folder, tmp_path):
    for path in paths(folder):
        (tmp_path / Path(path).name).write_bytes(Path(path).read_bytes())
    return tmp_path


@pytest.mark.parametrize('kind', [*BROKEN, *WARNED])
def test_the_reader_says_what_the_engine_would_do(copied, kind):
    change, file, rule = (BROKEN | WARNED)[kind]
    before, _ = check(copied)
    # 16 channels, a small grid, and a backbone of few channels
    assert {one.rule for one in before} == {'main.cpp', 'shape', 'no-kernel'}
    change(copied)
    new = [one for one in check(copied)[0] if one not in before]
    wanted = 'error' if kind in BROKEN else 'warning'
    assert (wanted, file, rule) in {(one.severity, one.node, one.rule) for one in new}, new


def test_the_tables_of_a_rig_are_written_as_the_runtime_has_them(copied, frames, tmp_path, capsys):
    rig, target = tmp_path / 'rig.npz', tmp_path / 'tables.npz'
    np.savez(rig, **frames[0].calibration)
    assert main(['write-tables', str(copied), str(rig), '--output', str(target)]) == 0
    with cuda.CudaBEVFusion(copied) as runtime:
        runtime.step(frames[0])
    with np.load(target) as stored:
        assert all(np.array_equal(stored[name], getattr(runtime.tables, name)) for name in stored)
    np.savez(rig, **dict(frames[0].calibration, camera_intrinsics=np.zeros((6, 4, 4), np.float32)))
    assert main(['write-tables', str(copied), str(rig), '--output', str(target)]) == 2
    assert 'camera_intrinsics' in capsys.readouterr().err
