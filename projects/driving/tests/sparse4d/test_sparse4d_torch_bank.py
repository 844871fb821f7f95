"""The bank in numpy equals that in PyTorch over a drive that reaches its limits."""

import dataclasses

import numpy as np
import pytest
import torch

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from mm2onnx_driving.sparse4d import runtime as functions
from mm2onnx_driving.sparse4d.model import InstanceBank as TorchBank
from mm2onnx_driving.sparse4d.runtime import Sparse4DFacts
from mmdeploy_ext.runtime.frames import Frame, StreamState

A, M, C, K = 24, 16, 4, 3
FACTS = Sparse4DFacts(
    max_num=A,
    score_threshold=None,
    num_classes=K,
    num_instances=A,
    num_temp=M,
    confidence_decay=0.6,
    default_time_interval=0.5,
    max_time_interval=2.0,
)
TIMES = (0.0, 0.5, 1.0, 0.75, 0.75, 2.75, 6.0, 6.5, 100.0, 100.25)
"""Seconds: backwards, no time at all, exactly 2 s, and two gaps."""


def published():
    """Return the bank of the PyTorch model."""
    handler = dict(type='SparseBox3DKeyPointsGenerator', embed_dims=C)
    return TorchBank(A, C, np.zeros((A, 11)).tolist(), handler, M)


def poses():
    """Return the poses of a car that drives and turns, 1 km from the origin."""
    for number in range(len(TIMES)):
        angle = 0.4 * number**1.5
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        pose[:3, 3] = 1000 + 3 * number, -500 + number**2, 0.1 * number
        yield pose


def network(frame, feature, anchor, mask):
    """Return what a graph could give: the instances that were handed on, changed a little, and new ones."""
    rng = np.random.default_rng(frame)
    new = [rng.standard_normal((1, A, size)).astype(np.float32) for size in (C, 11, K)]
    new[2] = new[2] * 1.5 - 0.5
    if mask:
        new[0][:, :M] = feature + 0.1 * new[0][:, :M]
        new[1][:, :M] = anchor + 0.1 * new[1][:, :M]
    return new


def run_published(threshold):
    """Return per frame what the PyTorch bank gives to the graph and makes of its results."""
    bank, frames = published(), []
    for frame, (pose, time) in enumerate(zip(poses(), TIMES, strict=True)):
        globals_ = dict(T_global=pose, T_global_inv=np.linalg.inv(pose))
        metas = dict(timestamp=torch.tensor([time], dtype=torch.float64), img_metas=[globals_])
        _, _, interval = bank.get(metas)
        exists = bank.cached_anchor is not None
        mask = exists and bool(bank.mask)
        stored = [None, None]
        if exists:
            stored = [bank.cached_feature.numpy(), bank.cached_anchor.numpy()]
        outputs = network(frame, *stored, mask)
        tensors = [torch.from_numpy(values) for values in outputs]
        bank.cache(*tensors, metas)
        ids = bank.get_instance_id(tensors[2], threshold)
        facts = dict(feature=stored[0], anchor=stored[1], interval=interval.numpy(), mask=mask, exists=exists)
        facts.update(ids=ids.numpy(), confidence=bank.temp_confidence.numpy(), kept=bank.kept[0].numpy())
        frames.append((outputs, facts))
    return frames


def run_numpy(frames, threshold):
    """Return the first difference of our bank from the published one, '' if there is none."""
    rule, memory = dataclasses.replace(FACTS, score_threshold=threshold), None
    for number, ((outputs, facts), pose, time) in enumerate(zip(frames, poses(), TIMES, strict=True)):
        frame = Frame(None, None, None, pose, time, None)
        inputs = functions.temporal_inputs(rule, C, memory, frame)
        if inputs.exists != facts['exists'] or bool(inputs.mask[0]) != facts['mask']:
            return f'frame {number}: mask'
        pairs = [('interval', inputs.time_interval, 1e-6)]
        if inputs.exists:
            pairs += [('feature', inputs.feature, 0), ('anchor', inputs.anchor, 2e-4)]
        ids, confidence = functions.tracked(rule, inputs, memory, outputs[2])
        kept = functions.top_rows(confidence[0], M)
        rows = functions.next_bank(rule, memory, *outputs[:2], ids, confidence)
        memory = StreamState(rows, pose, time, '')
        pairs += [('confidence', confidence, 1e-6), ('kept', kept, 0), ('ids', ids, 0)]
        for name, values, tolerance in pairs:
            if not np.abs(values - facts[name]).max() <= tolerance:
                return f'frame {number}: {name}'
    return ''


@pytest.fixture(scope='module', params=[None, 0.5], ids=['all', 'threshold'])
def drive(request):
    return run_published(request.param), request.param


def test_both_banks_are_equal_over_gaps_and_time_that_runs_backwards(drive):
    assert run_numpy(*drive) == ''
