"""The deploy contract as files: spec, structure, the unpatched model frame by frame, and the goldens."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import streampetr_seeded as seeded
import toy_streampetr as toy
import toy_streampetr_deploy as deployed
import toy_streampetr_export as exported
from mmdeploy_ext.consumers.streampetr_fork.export import fork_spec
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.families.streampetr import spec
from mmdeploy_ext.families.streampetr.memory import to_local
from mmdeploy_ext.families.streampetr.runtime import StreamPetrOnnx
from mmdeploy_ext.runtime.frames import Frame
from proofs import check_files
from verdicts import checks_of, graphs_of

CONFIG = 'projects/configs/StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e.py'
BOX = np.array([5e-3] * 3 + [1e-3] * 7)
"""Bars of ../shared/golden/streampetr/INDEX.md, as those of STATE."""
STATE = dict(embedding=5e-4, reference_point=2e-3, timestamp=1e-6, egopose=2e-4, velo=2e-4)
FRAMES = [('scene0', 0), ('scene0', 1), ('scene0', 2), ('scene1', 0), ('scene1', 1)]


@pytest.fixture(scope='module', params=[pytest.param(11, marks=pytest.mark.matrix), 17])
def paths(request, tmp_path_factory):
    return deployed.export(tmp_path_factory.mktemp(f'opset{request.param}'), opset=request.param)


def assert_close(found, wanted, layers=slice(None)):
    np.testing.assert_allclose(found['all_cls_scores'], wanted['all_cls_scores'][layers], rtol=0, atol=1e-3)
    assert (np.abs(found['all_bbox_preds'] - wanted['all_bbox_preds'][layers]) <= BOX).all()


def stepper(paths, engine='OnnxRuntimeBackend'):
    return deployed.deployment().family.runner(paths, dict(engine=engine, threads=1))


def failed_checks(path):
    """Return what level 1 of the proof finds wrong with a file, whose model was loaded again."""
    other = dataclasses.replace(deployed.deployment())
    verdict = check_files(other, [path])
    return [check for check in (*graphs_of(verdict), *checks_of(verdict)) if not check.passed]


def test_the_files_are_what_their_specs_say_and_hold_the_models_weights(paths):
    assert [Path(path).stem for path in paths] == [
        'extract_img_feat',
        'position_embedding',
        'pts_head_memory',
    ]
    assert not [failed for path in paths for failed in failed_checks(path)]


def test_no_graph_knows_absolute_time_or_place(paths):
    names = {value.name for path in paths for value in onnx.load(path).graph.input}
    assert not names & {'timestamp', 'ego_pose', 'ego_pose_inv'}
    assert all(
        value.type.tensor_type.elem_type == 1 for path in paths for value in onnx.load(path).graph.input
    )


def test_a_drive_with_a_scene_change_is_the_unpatched_models(paths):
    frames = [exported.frame(index, scene) for scene, index in FRAMES]
    family, model = deployed.deployment().family, deployed.deployment().model
    reference, engine = family.reference(model), stepper(paths)
    for frame in frames:
        wanted, found = reference.step(frame), engine.step(frame)
        assert_close(found.outputs, wanted.outputs)
        assert found.was_reset == wanted.was_reset
        for field, bar in dict(STATE, reference_point=BOX[0]).items():
            state = engine.state.tensors[field], reference.state.tensors[field]
            np.testing.assert_allclose(*state, rtol=0, atol=max(bar, 1e-3))


def test_far_away_and_years_later_the_drive_is_the_same(paths):
    near, far = stepper(paths), stepper(paths)
    for index in range(3):
        frame = exported.frame(index)
        wanted = near.step(frame)
        found = far.step(exported.far(frame, 7e5, 3e8))
        for name in ('all_cls_scores', 'all_bbox_preds'):
            np.testing.assert_allclose(found.outputs[name], wanted.outputs[name], rtol=0, atol=1e-4)


def test_openvino_keeps_the_memory_from_frame_to_frame(paths):
    pytest.importorskip('openvino', reason='optional: pip install openvino')
    reference = deployed.deployment().family.reference(deployed.deployment().model)
    engine = stepper(paths, 'OpenVinoBackend')
    for index in range(4):
        assert_close(
            engine.step(exported.frame(index)).outputs, reference.step(exported.frame(index)).outputs
        )


@pytest.mark.parametrize('changed', ['ego_motion', 'delta_t_s', 'prev_exists', 'pre_memory_egopose', 'cone'])
def test_each_input_of_the_head_matters(changed):
    family, model = deployed.deployment().family, deployed.deployment().model
    graph = family.graphs(model, family.choose())[-1]
    other = {**graph.example, changed: graph.example[changed] * 0}
    first, second = (graph.module(*feeds.values()) for feeds in (graph.example, other))
    assert not np.allclose(first[0].detach(), second[0].detach(), atol=1e-6)


def test_the_last_layer_alone_is_the_last_of_all(tmp_path):
    last = deployed.export(tmp_path, layers='last')
    head = read_metadata(last[-1]).spec
    queries = toy.NUM_QUERY + toy.NUM_PROPAGATED
    assert head.tensor('all_cls_scores').axes == (1, 1, queries, toy.NUM_CLASSES)
    reference = deployed.deployment().family.reference(deployed.deployment().model)
    engine = stepper(last)
    for index in range(2):
        frame = exported.frame(index)
        assert_close(engine.step(frame).outputs, reference.step(frame).outputs, slice(-1, None))


@pytest.mark.matrix
@pytest.mark.parametrize('opset', range(11, 21))
def test_every_opset(opset, tmp_path):
    paths = deployed.export(tmp_path, opset=opset)
    reference = deployed.deployment().family.reference(deployed.deployment().model)
    engine = stepper(paths)
    for index in range(3):
        assert_close(
            engine.step(exported.frame(index)).outputs, reference.step(exported.frame(index)).outputs
        )


@pytest.mark.matrix
@pytest.mark.parametrize('contract', ['deploy', 'fork'])
def test_the_dynamo_exporter(contract, tmp_path):
    paths = deployed.export(tmp_path, exporter='dynamo', opset=18, contract=contract)
    reference = deployed.deployment().family.reference(deployed.deployment().model)
    assert not [failed for path in paths for failed in failed_checks(path)]
    engine = stepper(paths)
    for index in range(3):
        assert_close(
            engine.step(exported.frame(index)).outputs, reference.step(exported.frame(index)).outputs
        )


@pytest.mark.matrix
def test_onnxslim_keeps_the_contract(tmp_path):
    engine = stepper(deployed.export(tmp_path, simplify=True))
    reference = deployed.deployment().family.reference(deployed.deployment().model)
    for index in range(2):
        assert_close(
            engine.step(exported.frame(index)).outputs, reference.step(exported.frame(index)).outputs
        )


README = Path('mmdeploy_ext/families/streampetr/README.md')


def table_rows(contract):
    """Return the rows of a graph's table in the README."""
    return [
        f'| `{row.name}` | {side} | {row.dtype} | {row.shape_text()} | {row.unit} | {row.meaning} |'
        for side, tensors in (('in', contract.inputs), ('out', contract.outputs))
        for row in tensors
    ]


def test_the_tables_of_the_readme_are_the_specs():
    text = README.read_text()
    size = spec.Sizes(6, 256, 704, 16, 64, 256, 6, 428, 10, 10, 512, 640)
    for make in (spec.extract_img_feat, spec.position_embedding, spec.pts_head_memory, fork_spec):
        assert '\n'.join(table_rows(make(size, FAMILIES['streampetr'].choose(contract='fork')))) in text


# ---- the full-size model with the goldens' seeded weights


def golden_deployment():
    """Return the R50 model of 428 queries with seeded weights."""
    seeded.require_golden()
    cfg = load_config(CONFIG)
    family = deployed.deployment().family
    family.check(cfg, FAMILIES['streampetr'].choose())
    model = family.build(cfg)
    model.load_state_dict(seeded.seeded_state_dict(), strict=True)
    return dataclasses.replace(
        deployed.deployment(),
        cfg=cfg,
        model=model,
        rule=family.preprocess_rule(cfg),
        classes=tuple(cfg.data.test.classes),
    )


def golden_frame(index):
    inputs = np.load(seeded.GOLDEN / 'inputs.npz')
    names = ('lidar2img', 'intrinsics', 'ego_pose', 'ego_pose_inv')
    return Frame(
        images=seeded.golden_images(index)[0].numpy(),
        timestamp_s=float(inputs[f'f{index}_timestamp']),
        scene_token=str(inputs[f'f{index}_scene']),
        **{name: inputs[f'f{index}_{name}'].astype(np.float64) for name in names},
    )


@pytest.mark.matrix
def test_the_full_size_files_run_free_over_the_goldens(tmp_path):
    options = FAMILIES['streampetr'].choose()
    paths, seconds = export_files(golden_deployment(), options, str(tmp_path / 'r50'))
    print(f'\nexported in {seconds:.1f} s')
    wanted = np.load(seeded.GOLDEN / 'outputs.npz')
    with StreamPetrOnnx(paths, max_gap_s=None) as runtime:
        for index in range(seeded.NUM_FRAMES):
            frame = golden_frame(index)
            found = runtime.step(frame)
            assert found.was_reset == (index in (0, 4))
            assert_close(found.outputs, {name: wanted[f'f{index}_{name}'] for name in found.outputs})
            memory = {field: wanted[f'f{index}_memory_{field}'] for field in STATE}
            local = to_local(memory, frame.ego_pose, frame.timestamp_s)
            worst = {field: np.abs(runtime.state.tensors[field] - local[field]).max() for field in STATE}
            print(index, {field: f'{value:.1e}' for field, value in worst.items()})
            assert {field for field, bar in STATE.items() if worst[field] > bar} == set()
