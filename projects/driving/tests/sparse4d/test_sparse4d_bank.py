"""The instance bank of Sparse4D: its limits by construction, and the stored states of the published one."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import upstream_goldens
from mm2onnx_driving.common.runtime.instances import (
    COSINE,
    SINE,
    VELOCITY,
    boxes_of_anchors,
    decode,
)
from mm2onnx_driving.sparse4d import runtime as functions
from mm2onnx_driving.sparse4d.family import Sparse4DFamily
from mm2onnx_driving.sparse4d.runtime import NO_ID, Sparse4DFacts, project_anchors
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.runtime.geometry import relative_motion

GOLDEN = upstream_goldens.SHARED / 'sparse4d'
INPUTS = np.load(GOLDEN / 'inputs.npz').files if GOLDEN.is_dir() else ['f0_token']
FRAMES = range(sum(name.endswith('_token') for name in INPUTS))
CHANNELS = 16  # the goldens have every 16th channel of a feature in all frames
PUBLISHED = Sparse4DFacts(
    max_num=300,
    score_threshold=None,
    num_classes=10,
    num_instances=900,
    num_temp=600,
    confidence_decay=0.6,
    default_time_interval=0.5,
    max_time_interval=2.0,
)
SMALL = dataclasses.replace(PUBLISHED, max_num=6, num_classes=1, num_instances=6, num_temp=4)
START = 1.5e9
"""Seconds, the time of the first frame; float32 would be 128 s off here."""


class Bank:
    """A stream of frames whose memory goes from one to the next."""

    def __init__(self, facts):
        self.facts, self.memory = facts, None

    @property
    def tensors(self):
        return self.memory.tensors

    def reset(self):
        self.memory = None

    def load(self, tensors, ego_pose, timestamp_s):
        self.memory = StreamState(tensors, ego_pose, timestamp_s, '')

    def get(self, ego_pose, timestamp_s):
        self.frame = Frame(None, None, None, ego_pose, timestamp_s, None)
        return functions.temporal_inputs(self.facts, CHANNELS, self.memory, self.frame)

    def update(self, inputs, feature, anchor, logits, kept=None):
        """Take a frame; return its ids and confidences."""
        ids, confidence = functions.tracked(self.facts, inputs, self.memory, logits)
        rows = functions.next_bank(self.facts, self.memory, feature, anchor, ids, confidence, kept)
        self.load(rows, self.frame.ego_pose, self.frame.timestamp_s)
        return ids, confidence


@pytest.fixture(scope='module')
def golden():
    upstream_goldens.folder_of('sparse4d')
    with np.load(GOLDEN / 'inputs.npz') as inputs, np.load(GOLDEN / 'outputs.npz') as outputs:
        return {**inputs, **outputs}


def frame_of(golden, frame):
    """Return pose and time of a stored frame, and what its graph gave."""

    def stored(name):
        return golden[f'f{frame}_{name}']

    layer = stored('instance_feature_slice'), stored('prediction_015')[2], stored('classification_5')
    return stored('T_global'), float(stored('timestamp')), [values[None] for values in layer]


def load_stored(bank, golden, frame):
    """Put the stored state after a frame into a bank; one without a frame before it is empty."""
    if frame < 0 or golden[f'f{frame + 1}_reset']:
        bank.reset()
        return
    names = dict(
        cached_feature='cached_feature_slice', cached_anchor='cached_anchor', confidence='confidence'
    )
    tensors = {name: golden[f'f{frame}_{key}'][None] for name, key in names.items()}
    ids = golden[f'f{frame}_state_instance_id']
    assert (ids[PUBLISHED.num_temp :] == NO_ID).all()
    tensors['instance_id'] = ids[None, : PUBLISHED.num_temp]
    tensors['prev_id'] = np.array([golden[f'f{frame}_prev_id']])
    bank.load(tensors, golden[f'f{frame}_T_global'], float(golden[f'f{frame}_timestamp']))


def same_up_to_ties(rows, expected, scores, distance=3e-7):
    """Assert two orders of rows that differ where scores are within a distance; return the others' places."""
    assert sorted(rows) == sorted(expected)
    places = np.flatnonzero(rows != expected)
    np.testing.assert_allclose(scores[rows[places]], scores[expected[places]], rtol=0, atol=distance)
    return places


@pytest.mark.parametrize('frame', FRAMES)
def test_a_frame_from_the_stored_state_gives_the_next_stored_state(golden, frame):
    def stored(name):
        return golden[f'f{frame}_{name}']

    bank = Bank(PUBLISHED)
    load_stored(bank, golden, frame - 1)
    pose, time, outputs = frame_of(golden, frame)
    inputs = bank.get(pose, time)
    assert inputs.exists == (frame > 0 and not golden[f'f{frame}_reset'])
    assert inputs.time_interval == stored('time_interval')
    if inputs.exists:
        assert bool(inputs.mask[0]) == bool(stored('mask')[0])
        error = np.abs(inputs.anchor[0] - stored('temp_anchor_projected')).max()
        # frame 5 is 5.8e6 s later: its places of 4e7 m are compared by their norm
        norm = np.linalg.norm(stored('temp_anchor_projected')[:, :3], axis=1).max()
        assert error <= max(2e-5, 1e-6 * norm)
    ids, confidence = bank.update(inputs, *outputs)
    np.testing.assert_allclose(confidence[0], stored('temp_confidence'), rtol=0, atol=2e-7)
    expected = stored('cache_topk_index').astype(np.int64)
    kept = functions.top_rows(confidence[0], PUBLISHED.num_temp)
    ties = same_up_to_ties(kept, expected, stored('temp_confidence'))
    assert len(ties) <= (20 if frame in (8, 9) else 0), 'frames 8 and 9 alone have equal scores'
    np.testing.assert_array_equal(ids[0], stored('instance_id'))
    # with the order of the stored rows the whole state is the stored one
    load_stored(bank, golden, frame - 1)
    bank.update(inputs, *outputs, kept=expected)
    tensors = bank.tensors
    np.testing.assert_array_equal(tensors['cached_feature'][0], stored('cached_feature_slice'))
    np.testing.assert_array_equal(tensors['cached_anchor'][0], stored('cached_anchor'))
    np.testing.assert_allclose(tensors['confidence'][0], stored('confidence'), rtol=0, atol=2e-7)
    np.testing.assert_array_equal(tensors['instance_id'][0], stored('state_instance_id')[:600])
    assert tensors['prev_id'] == stored('prev_id')


@pytest.mark.parametrize('frame', FRAMES)
def test_boxes_are_the_stored_ones(golden, frame):
    def stored(name):
        return golden[f'f{frame}_{name}']

    _, _, (_, anchor, logits) = frame_of(golden, frame)
    ids = stored('instance_id')[None].astype(np.int64)
    boxes = decode(logits, anchor, stored('quality_5')[None], PUBLISHED, ids)
    np.testing.assert_allclose(boxes.scores, stored('scores_3d'), rtol=0, atol=3e-7)
    np.testing.assert_allclose(boxes.class_scores, stored('cls_scores'), rtol=0, atol=3e-7)
    # by id: an id is there once, and equal scores have no order
    assert len(set(boxes.ids)) == 300
    mine, expected = np.argsort(boxes.ids), np.argsort(stored('instance_ids'))
    np.testing.assert_array_equal(boxes.ids[mine], stored('instance_ids')[expected])
    np.testing.assert_array_equal(boxes.labels[mine], stored('labels_3d')[expected])
    columns = stored('boxes_3d')[expected].copy()
    columns[:, 2] -= columns[:, 5] / 2
    np.testing.assert_allclose(boxes.boxes[mine], columns[:, :9], rtol=0, atol=1e-5)
    apart = np.flatnonzero(boxes.ids != stored('instance_ids'))
    assert len(apart) <= 4
    np.testing.assert_allclose(boxes.scores[apart], stored('scores_3d')[apart], rtol=0, atol=3e-7)


def test_facts_are_the_settings_of_the_model():
    settings = dict(confidence_decay=0.7, default_time_interval=0.4, max_time_interval=3.0)
    bank = SimpleNamespace(**settings, num_anchor=9, num_temp_instances=5)
    layer = SimpleNamespace(cls_layers=[SimpleNamespace(out_features=4)])
    coder = SimpleNamespace(num_output=8, score_threshold=0.1)
    head = SimpleNamespace(instance_bank=bank, decoder=coder, layers=[layer])
    expected = dict(settings, max_num=8, num_classes=4, num_instances=9, num_temp=5, score_threshold=0.1)
    assert Sparse4DFamily().facts(SimpleNamespace(head=head)) == Sparse4DFacts(**expected)


def test_a_score_at_the_threshold_gets_an_id_and_a_box():
    logits, facts = np.float32([[[0.0], [-1e-3]]]), dataclasses.replace(SMALL, score_threshold=0.5)
    facts = dataclasses.replace(facts, num_instances=2, num_temp=1)
    first = Frame(None, None, None, np.eye(4), 0.0, None)
    inputs = functions.temporal_inputs(facts, CHANNELS, None, first)
    ids, _ = functions.tracked(facts, inputs, None, logits)
    assert ids.tolist() == [[0, NO_ID]]
    anchor = np.arange(22, dtype=np.float32).reshape(1, 2, 11)
    boxes = decode(logits, anchor, np.zeros((1, 2, 2), np.float32), facts, ids)
    assert boxes.ids.tolist() == [0] and boxes.boxes[0, 7:].tolist() == [8, 9]


# --- boxes ------------------------------------------------------------------------------------------


def test_a_threshold_of_boxes_is_of_the_class_and_class_scores_have_an_order_of_their_own():
    logits = np.float32([[[2.0], [1.0], [0.0]]])
    quality = np.float32([[[-3.0, 0], [3.0, 0], [0.0, 0]]])
    rows = logits, np.zeros((1, 3, 11), np.float32), quality
    boxes = decode(*rows, SMALL, np.array([[7, 8, 9]]))
    assert boxes.ids.tolist() == [8, 9, 7]
    np.testing.assert_allclose(boxes.class_scores, [0.880797, 0.731059, 0.5], atol=1e-6)
    facts = dataclasses.replace(SMALL, score_threshold=0.6)
    assert decode(*rows, facts, np.array([[7, 8, 9]])).ids.tolist() == [8, 7]


def test_a_box_has_its_z_at_the_bottom_and_its_id_in_json():
    anchor = np.zeros((1, 1, 11), np.float32)
    anchor[..., :6] = 1, 2, 3, *np.log([4.0, 2.0, 1.0])
    anchor[..., [SINE, COSINE]] = 1, 0
    logits, quality = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 2), np.float32)
    boxes = decode(logits, anchor, quality, SMALL, np.array([[5]]))
    (entry,) = boxes.to_json(('car',))
    assert entry['track_id'] == 5
    np.testing.assert_allclose(entry['box'], [1, 2, 2.5, 4, 2, 1, np.pi / 2, 0, 0], atol=1e-4)
    assert len(boxes.above(0.5)) == 0


def turned(degrees, x=0.0, y=0.0):
    angle = np.radians(degrees)
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[:2, 3] = x, y
    return pose


def outputs_of(rule, seed=0, scores=None):
    """Return feature, anchor and logits (one class) of a frame; logits are those of some scores."""
    rng = np.random.default_rng(seed)
    count = rule.num_instances
    scores = rng.uniform(0.1, 0.9, count) if scores is None else np.asarray(scores, np.float64)
    logits = np.log(scores / (1 - scores))[None, :, None]
    return (
        rng.standard_normal((1, count, CHANNELS)).astype(np.float32),
        rng.standard_normal((1, count, 11)).astype(np.float32),
        logits.astype(np.float32),
    )


def bank_after(rule=SMALL, **frame):
    """Return a bank after a frame at `START` at the origin."""
    bank = Bank(rule)
    bank.update(bank.get(np.eye(4), START), *outputs_of(rule, **frame))
    return bank


@pytest.mark.parametrize(
    ('seconds', 'is_near', 'interval'),
    [
        (2.0, True, 2.0),
        (2.0 + 4e-7, False, 0.5),  # the next time that float32 tells apart
        (-2.5, False, 0.5),
        (-0.25, True, -0.25),
        (0.0, True, 0.5),
    ],
)
def test_the_mask_and_the_interval_follow_the_gap(seconds, is_near, interval):
    bank = bank_after()
    bank.load(bank.tensors, np.eye(4), 0.0)  # float64 tells 4e-7 s apart here
    inputs = bank.get(np.eye(4), seconds)
    assert inputs.exists
    assert inputs.mask.tolist() == [float(is_near)]
    assert inputs.time_interval.tolist() == [np.float32(interval)]
    # whatever the interval is, the anchors move on by the true gap
    moved = inputs.anchor[0, :, :3] - bank.tensors['cached_anchor'][0, :, :3]
    velocity = bank.tensors['cached_anchor'][0, :, VELOCITY]
    np.testing.assert_allclose(moved, velocity * seconds, rtol=0, atol=1e-6)


def test_a_thing_that_stands_still_stays_at_its_place_on_the_map():
    anchor = outputs_of(SMALL)[1]
    anchor[..., VELOCITY] = 0
    last, now = turned(25, 1000.0, 2000.0), turned(-80, 1010.0, 1995.0)
    moved = project_anchors(anchor, relative_motion(last, now), 0.5)
    places = [
        pose[:3, :3] @ row[:, :3].T + pose[:3, 3:] for pose, row in ((last, anchor[0]), (now, moved[0]))
    ]
    np.testing.assert_allclose(*places, rtol=0, atol=1e-5)


def test_a_thing_moves_on_by_its_velocity_before_the_car_turns():
    anchor = np.zeros((1, 1, 11), np.float32)
    anchor[..., :3], anchor[..., VELOCITY] = (10, 0, 1), (2, 0, 0.5)
    moved = project_anchors(anchor, relative_motion(np.eye(4), turned(90)), 0.5)
    np.testing.assert_allclose(moved[0, 0, :3], [0, -11, 1.25], atol=1e-6)
    np.testing.assert_allclose(moved[0, 0, VELOCITY], [0, -2, 0.5], atol=1e-6)


def test_the_projection_exchanges_sine_and_cosine():
    anchor = np.zeros((1, 11), np.float32)
    yaw = 0.3
    anchor[:, [SINE, COSINE]] = np.sin(yaw), np.cos(yaw)
    moved = project_anchors(anchor, relative_motion(np.eye(4), turned(20)), 0.5)
    yaw -= np.radians(20)
    np.testing.assert_allclose(moved[0, [SINE, COSINE]], [np.cos(yaw), np.sin(yaw)], atol=1e-6)
    np.testing.assert_allclose(boxes_of_anchors(moved[:, [*range(6), 7, 6, 8, 9, 10]])[0, 6], yaw, atol=1e-6)
