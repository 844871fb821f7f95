"""Kits of models of several files: every file on PyTorch's tensors, then all of them one after the other."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

import toy_frames
from few_packages import run_command
from kits import FRAMES, GENERATED, run
from marking import needs_driving
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.bench.kinds import SEQUENCE
from mmdeploy_ext.bench.kinds.sequence import proof_samples
from mmdeploy_ext.bench.kit.contents import StoredArray, read_array
from mmdeploy_ext.bench.kit.judge import judge, title_of
from mmdeploy_ext.bench.kit.runners import run_onnxruntime
from mmdeploy_ext.cli import judge_app
from mmdeploy_ext.families.synthetic.drive import synthetic_drive


def changed(outputs, folder, change, names='*'):
    """Copy outputs; `change` is called with the arrays of each case whose name fits."""
    shutil.copytree(outputs, folder)
    for file in folder.glob(f'{names}.npz'):
        with np.load(file) as stored:
            arrays = dict(stored)
        change(arrays)
        np.savez(file, **arrays)
    return folder


def test_a_drive_is_equal_frame_by_frame_and_free_running(stream):
    judgement = judge(*stream)
    assert title_of(judgement) == f'EQUAL ON {2 * FRAMES + 1} INPUTS AND {FRAMES} FRAMES', judgement.failures
    assert [*judgement.series] == ['teacher-forced', 'free-running']
    for found, series in zip(judgement.with_figure('frames'), judgement.series.values(), strict=True):
        assert found.figures['frames'] == FRAMES and series['reset'] == [True, False, True, False]
        assert found.figures['match_rate'] == 1 and found.figures['matched'] > 20
        assert len(series['errors']['memory velo']) == FRAMES
    assert any(series['errors']['memory embedding'])


def test_the_first_frame_and_tensor_that_differ_are_named(stream, tmp_path, capsys):
    kit, outputs = stream

    def wrong(arrays):
        arrays['all_cls_scores'] = arrays['all_cls_scores'] + np.float32(0.01)

    folder = changed(outputs, tmp_path / 'o', wrong, 'pts_head_memory_00[23]')
    assert judge_app.main([str(kit), str(folder)]) == 1
    printed = capsys.readouterr().out
    assert re.search(r'differs: teacher-forced: all_cls_scores.*frame 002', printed), printed
    assert 'ok     free-running: 4 frames, 1 resets' in printed and printed.endswith('NOT EQUAL\n')


@pytest.mark.parametrize('name', ['stream', pytest.param('sweeps', marks=pytest.mark.matrix)])
def test_frames_are_judged_with_numpy_alone(request, name):
    done = run_command('judge', *request.getfixturevalue(name), packages=('numpy', 'mm2onnx_driving'))
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith('EQUAL ON'), done.stderr


MEMORY = [f'memory_{name}' for name in ('embedding', 'reference_point', 'timestamp', 'egopose', 'velo')]


def test_a_frozen_memory_is_refused_by_frame(stream, tmp_path):
    kit, _ = stream
    manifest, copy = json.loads((kit / 'manifest.json').read_text()), tmp_path / 'kit'
    cases = {case['name']: case for case in manifest['cases']}
    for frame in manifest['frames']:  # the engine reads the memory of the first frame again and again
        step = frame['steps'][-1]
        for name in MEMORY:
            step['computed'].pop(f'pre_{name}', None)
            first = cases['pts_head_memory_000']['inputs'][f'pre_{name}']
            cases[step['case']]['inputs'][f'pre_{name}'] = first
    shutil.copytree(kit, copy)
    (copy / 'manifest.json').write_text(json.dumps(manifest))
    judgement = judge(kit, run(copy, tmp_path / 'outputs')[1])
    assert not judgement.passed and any('frame 001' in failure for failure in judgement.failures)
    free = judgement.with_figure('frames')[1].figures
    assert free['matched'] < free['reference']


@pytest.mark.parametrize(
    ('names', 'share', 'equal'),
    [('chain_001', 0.05, False), ('chain_002', 0.001, False), ('chain_001', 0.001, True)],
)
def test_a_free_memory_that_is_another_one_fails_though_all_results_match(
    stream, tmp_path, names, share, equal
):
    """Frame 001 keeps a memory, of which rounding may add up; frame 002 begins with an empty one."""
    kit, outputs = stream

    def drifted(arrays):
        embedding = arrays['post_memory_embedding']
        arrays['post_memory_embedding'] = embedding + np.float32(share * np.abs(embedding).max())

    judgement = judge(kit, changed(outputs, tmp_path / 'o', drifted, names))
    teacher, free = judgement.with_figure('frames')
    assert teacher.passed and free.figures['match_rate'] == 1
    assert judgement.passed is free.passed is equal
    assert equal or any(
        'memory embedding' in reason and names[-3:] in reason for reason in judgement.failures
    )


def test_sweeps_go_through_both_files_alone_and_one_after_the_other(sweeps):
    judgement = judge(*sweeps)
    assert title_of(judgement) == 'EQUAL ON 4 INPUTS AND 2 FRAMES', judgement.failures
    assert judgement.summary()['matched'] > 20
    manifest = json.loads((sweeps[0] / 'manifest.json').read_text())
    cases = {case['name']: case for case in manifest['cases']}
    bev = cases['backbone_000']['tensors']['bev'], cases['head_000']['inputs']['bev']
    assert bev[0]['file'] == bev[1]['file'], 'equal arrays are one file'


def zeros(arrays):
    arrays['heatmap_0'][:] = 0


def turned(arrays):
    arrays['bev'] = arrays['bev'].transpose(0, 1, 3, 2).copy()


def exploded(arrays):
    arrays['heatmap_1'].flat[0] = np.inf


@pytest.mark.parametrize(
    ('fault', 'names', 'name'),
    [
        (zeros, 'head_001', 'head_001 sweep 1: heatmap_0'),
        (turned, 'backbone_*', 'bev: '),
        (exploded, 'head_000', 'heatmap_1: '),
    ],
)
def test_wrong_outputs_of_a_file_fail_by_name(sweeps, tmp_path, fault, names, name):
    kit, outputs = sweeps
    judgement = judge(kit, changed(outputs, tmp_path / 'o', fault, names))
    assert not judgement.passed
    assert any(name in failure for failure in judgement.failures), judgement.failures


@needs_driving
@pytest.mark.matrix
def test_a_memory_outside_of_the_files_is_that_of_pytorch_in_every_frame(tmp_path):
    detector, kit = toy_frames.SPARSE4D.load(tmp_path), tmp_path / 'kit'
    toy_frames.SPARSE4D.export(detector, tmp_path, contract='deploy')
    source, (drive, _) = str(tmp_path / 'sparse4d'), proof_samples(detector, 3)
    SEQUENCE.kit(detector, source, drive, kit, GENERATED)
    judgement = judge(*run(kit, tmp_path / 'outputs'))
    assert title_of(judgement) == 'EQUAL ON 6 INPUTS AND 3 FRAMES', judgement.failures

    shutil.copytree(kit, tmp_path / 'copy')
    last = json.loads((kit / 'manifest.json').read_text())['cases'][-1]
    for name in ('temp_instance_feature', 'temp_anchor'):
        entry = last['inputs'][name]
        np.zeros_like(read_array(kit, StoredArray(**entry))).tofile(tmp_path / 'copy' / entry['file'])
    failures = judge(kit, run(tmp_path / 'copy', tmp_path / 'o')[1]).failures
    assert failures and all(last['title'] in failure for failure in failures)
    first, _ = proof_samples(detector, 1)
    with pytest.raises(UsageError, match=r'--frames'):
        SEQUENCE.kit(detector, source, first, tmp_path / 'short', GENERATED)


@needs_driving
@pytest.mark.matrix
def test_lines_and_plans_go_through_a_kit(tmp_path):
    toy, kit = toy_frames.SPARSEDRIVE_SHORT, tmp_path / 'kit'
    detector = toy.load(tmp_path)
    toy.export(detector, tmp_path)
    drive, _ = proof_samples(detector, 3)
    SEQUENCE.kit(detector, str(tmp_path / toy.name), drive, kit, GENERATED)
    outputs = run(kit, tmp_path / 'outputs')[1]
    judgement = judge(kit, outputs)
    assert judgement.passed, judgement.failures
    assert all(row.figures['match_rate'] == 1 for row in judgement.with_figure('frames'))

    def other_plan(arrays):
        arrays['plan_steps'] = arrays['plan_steps'][:, ::-1].copy()

    judgement = judge(kit, changed(outputs, tmp_path / 'o', other_plan, 'sparsedrive_next_001'))
    assert not judgement.passed and 'plan' in ' '.join(judgement.failures), judgement.failures


@needs_driving
@pytest.mark.matrix
def test_a_file_that_runs_for_the_frame_before_gets_the_tensors_of_that_frame(tmp_path):
    """The rig changes in the second frame, in which PETRv2's embedding runs for both frames."""
    detector, kit = toy_frames.PETRV2.load(tmp_path), tmp_path / 'kit'
    toy_frames.PETRV2.export(detector, tmp_path)
    frame, *rest = synthetic_drive(4, detector.rule)
    lidar2img = np.array(frame.lidar2img)
    lidar2img[:, 0] *= 1.01
    second = dataclasses.replace(rest[0], scene_token=frame.scene_token, lidar2img=lidar2img)
    SEQUENCE.kit(detector, str(tmp_path / 'petrv2'), [frame, second, rest[1]], kit, GENERATED)
    judgement = judge(*run(kit, tmp_path / 'outputs'))
    assert title_of(judgement) == 'EQUAL ON 10 INPUTS AND 3 FRAMES', judgement.failures


def test_judge_runs_a_kit_on_an_engine_of_this_machine(sweeps, tmp_path, capsys):
    kit, outputs = str(sweeps[0]), tmp_path / 'o'
    words = [kit, str(outputs), '--run', 'onnxruntime', '--precision', 'fp16']
    assert judge_app.main(words) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith('WITHIN FP16 BARS ON 4 INPUTS AND 2 FRAMES (CPU, ONNX Runtime ')
    assert (outputs / 'head.fp16.onnx').exists()
    assert judge_app.main(words) == 2 and str(outputs) in capsys.readouterr().err


def test_frames_run_on_the_memory_that_the_frame_before_computed(stream, tmp_path):
    def forgetful(path, *options):
        engine = run_onnxruntime.open_file(path, *options)
        return lambda inputs: {
            name: array * 0 if name == 'post_memory_embedding' else array
            for name, array in engine(inputs).items()
        }

    kit, outputs = stream
    run_onnxruntime.main(str(tmp_path / 'o'), kit=kit, opens=forgetful)
    for name, is_equal in (('pts_head_memory_001', True), ('chain_001', False)):
        scores = [np.load(folder / f'{name}.npz')['all_cls_scores'] for folder in (outputs, tmp_path / 'o')]
        assert np.allclose(*scores, atol=1e-4) is is_equal, name
