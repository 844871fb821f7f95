"""The deploy contract as files: structure, options, and the goldens at full size."""

import dataclasses

import numpy as np
import pytest

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import streampetr_golden as seeded
import toy_drive_goldens
import toy_frames
import toy_streampetr_deploy as deployed
import toy_streampetr_export as exported
from mm2onnx_driving.streampetr.memory import to_local
from mm2onnx_driving.streampetr.runtime import StreamPetrOnnx
from mm2onnx_driving.streampetr.targets.streampetr_fork import ForkOnnx
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.detector_files import export_files

CONFIG = 'projects/configs/StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e.py'
BOX = np.array([5e-3] * 3 + [1e-3] * 7)
"""Bars of ../shared/golden/streampetr/INDEX.md, as those of STATE."""
STATE = dict(embedding=5e-4, reference_point=2e-3, timestamp=1e-6, egopose=2e-4, velo=2e-4)


def assert_close(found, wanted, layers=slice(None)):
    np.testing.assert_allclose(found['all_cls_scores'], wanted['all_cls_scores'][layers], rtol=0, atol=1e-3)
    assert (np.abs(found['all_bbox_preds'] - wanted['all_bbox_preds'][layers]) <= BOX).all()


def check_drive(paths, engine='OnnxRuntimeBackend', layers=slice(None), opens=StreamPetrOnnx):
    frames = [exported.frame(index) for index in range(3)]
    stepper = opens(paths, max_gap_s=None, engine=engine, threads=1)
    for frame, wanted in zip(frames, exported.eager(frames), strict=True):
        assert_close(stepper.step(frame).outputs, wanted, layers)


def test_the_toy_gives_the_recorded_numbers(tmp_path):
    toy_drive_goldens.check(toy_frames.STREAMPETR.load(tmp_path))


def test_the_last_layer_alone_is_the_last_of_all():
    check_drive(deployed.files(layers='last'), layers=slice(-1, None))


@pytest.mark.matrix
def test_openvino_keeps_the_memory_from_frame_to_frame():
    pytest.importorskip('openvino', reason='optional: pip install openvino')
    check_drive(deployed.files(), 'OpenVinoBackend')


OTHERS = [*(dict(opset=opset) for opset in (11, 13, 16, 20)), dict(simplify=True)]
OTHERS += [dict(exporter='dynamo', opset=18, contract=contract) for contract in ('deploy', 'fork')]


@pytest.mark.matrix
@pytest.mark.parametrize('options', OTHERS, ids=str)
def test_other_options_give_the_same_drive(options, tmp_path):
    opens = ForkOnnx if options.get('contract') == 'fork' else StreamPetrOnnx
    check_drive(deployed.export(tmp_path, **options), opens=opens)


# ---- the full-size model with the goldens' seeded weights


@pytest.mark.matrix
def test_the_full_size_files_run_free_over_the_goldens(tmp_path):
    seeded.require_golden()
    cfg, family = load_config(CONFIG), deployed.detector().family
    model = family.build(cfg)
    model.load_state_dict(seeded.seeded_state_dict(), strict=True)
    settings = dict(rule=family.preprocess_rule(cfg), classes=tuple(cfg.data.test.classes))
    full = dataclasses.replace(deployed.detector(), cfg=cfg, model=model, **settings)
    paths, _ = export_files(full, FAMILIES['streampetr'].choose(), str(tmp_path / 'r50'))
    wanted = np.load(seeded.GOLDEN / 'outputs.npz')
    with StreamPetrOnnx(paths, max_gap_s=None) as runtime:
        for index in range(seeded.NUM_FRAMES):
            frame = seeded.golden_frame_of_runtime(index)
            found = runtime.step(frame)
            assert found.was_reset == (index in (0, 4))
            assert_close(found.outputs, {name: wanted[f'f{index}_{name}'] for name in found.outputs})
            memory = {field: wanted[f'f{index}_memory_{field}'] for field in STATE}
            local = to_local(memory, frame.ego_pose, frame.timestamp_s)
            worst = {field: np.abs(runtime.state.tensors[field] - local[field]).max() for field in STATE}
            assert {field for field, bar in STATE.items() if worst[field] > bar} == set()


def test_far_away_and_years_later_the_drive_is_the_same():
    near, far = (StreamPetrOnnx(deployed.files(), threads=1) for _ in range(2))
    for index in range(3):
        wanted = near.step(exported.frame(index))
        # whole metres and powers of two: the shifted poses and times are the same numbers in float64
        found = far.step(exported.far(exported.frame(index), 7e5, 2.0**31))
        for name in ('all_cls_scores', 'all_bbox_preds'):
            np.testing.assert_allclose(found.outputs[name], wanted.outputs[name], rtol=0, atol=1e-4)
