"""The head's steps on a toy model: traced, batched, in both state frames, with every key that matters."""

import io

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv import ConfigDict
from mmdet3d.models import build_head

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_streampetr as toy
from mm2onnx_driving.layers.query_decoder import depth_bins, lidar_points, point_encoding, sine_encoding
from mm2onnx_driving.streampetr import steps as temporal
from mm2onnx_driving.streampetr.steps import Memory, nerf_encoding
from mmdeploy_ext.base.errors import ConfigError

SIZE = (toy.HEIGHT, toy.WIDTH)
ROWS = toy.MEMORY_LEN + toy.NUM_PROPAGATED
FEATS = (1, toy.NUM_CAMS, toy.EMBED, toy.HEIGHT // toy.STRIDE, toy.WIDTH // toy.STRIDE)


def build(cfg):
    """Return a seeded head in test mode, with modulations that do something."""
    torch.manual_seed(0)
    head = build_head(ConfigDict({**cfg, 'train_cfg': None})).eval()
    head.init_weights()
    for name, value in head.named_parameters():
        if 'gamma' in name or 'beta' in name:
            torch.nn.init.normal_(value, std=0.3)
    return head


@pytest.fixture(scope='module')
def head():
    return build(toy.pts_head())


def frames(count, seed=0):
    """Return per frame the features and the data of a drive; frame 0 starts it."""
    torch.manual_seed(seed)
    keys = ('lidar2img', 'intrinsics', 'ego_pose', 'ego_pose_inv', 'timestamp', 'prev_exists')
    return [(torch.randn(FEATS), {key: frame[key] for key in keys}) for frame in toy.drive(count, seed)]


def run(head, drive):
    """Return the outputs of every frame, the state kept by the head."""
    head.reset_memory()
    metas = [dict(pad_shape=[SIZE])] * drive[0][0].shape[0]
    with torch.no_grad():
        return [head(feats, metas, **data) for feats, data in drive]


def random_state(seed=0, fill=None):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(toy.EMBED,), (3,), (1,), (4, 4), (2,)]
    rows = [torch.randn(1, ROWS, *shape, generator=generator) for shape in shapes]
    return Memory(*(torch.full_like(row, fill) if fill is not None else row for row in rows))


def step_inputs(head, prev_exists=1.0, state=None):
    feats, data = frames(1)[0]
    where = head.embed_positions(data['lidar2img'], data['intrinsics'], SIZE)
    pose, inverse = toy.poses(2)
    motion = (inverse[1:].double() @ pose[:1].double()).float()
    state = state or random_state()
    return [feats, *where, *state, motion, torch.tensor([0.5]), torch.tensor([prev_exists])]


class Step(torch.nn.Module):
    def __init__(self, head, **options):
        super().__init__()
        self.head, self.options = head, options
        self.eval()  # the exporter puts back the mode that it finds

    def forward(self, feats, pos, cone, emb, ref, time, pose, velo, motion, delta_t, exists):
        state = Memory(emb, ref, time, pose, velo)
        out, _, after = self.head.step(feats, pos, cone, state, motion, delta_t, exists, **self.options)
        return out['all_cls_scores'], out['all_bbox_preds'], *after


def export(module, inputs):
    file = io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(
            module, tuple(inputs), file, opset_version=11, dynamo=False, input_names=list('abcdefghijk')
        )
    return file.getvalue()


@pytest.fixture(scope='module')
def exported(head):
    with torch.no_grad():
        return export(Step(head), step_inputs(head))


@pytest.mark.parametrize(('exists', 'fill'), [(1.0, None), (0.0, float('nan'))])
def test_the_graph_equals_eager_on_states_that_were_not_traced(head, exported, exists, fill):
    session = onnxruntime.InferenceSession(exported, providers=['CPUExecutionProvider'])
    with torch.no_grad():
        inputs = step_inputs(head, exists, random_state(seed=5, fill=fill))
        expected = Step(head)(*inputs)
    feeds = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), inputs, strict=True)}
    for ours, eager in zip(session.run(None, feeds), expected, strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, eager.numpy(), rtol=0, atol=1e-4)


def test_the_state_kept_by_the_head_and_a_pure_step_give_the_same_drive(head):
    drive = frames(4)
    drive[2][1]['prev_exists'] = torch.zeros(1)
    state, last, before = temporal.empty(1, ROWS, toy.EMBED), None, None
    for outs, (feats, data) in zip(run(head, drive), drive, strict=True):
        pose, time = data['ego_pose'].double(), data['timestamp']
        motion = torch.linalg.inv(pose) @ (pose if last is None else last)
        delta_t = torch.zeros(1) if last is None else (time - before).float()
        with torch.no_grad():
            where = head.embed_positions(data['lidar2img'], data['intrinsics'], SIZE)
            step, used, state = head.step(feats, *where, state, motion.float(), delta_t, data['prev_exists'])
        last, before = pose, time
        assert used.embedding.shape[1] == toy.MEMORY_LEN
        assert state.embedding.shape[1] == ROWS
        for name in ('all_cls_scores', 'all_bbox_preds'):
            torch.testing.assert_close(step[name], outs[name], atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(with_tracking=True), 'unknown keys with_tracking'),
        (dict(in_channels=64), 'in_channels=64'),
        (dict(num_propagated=99), 'num_propagated=99'),
        (dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False)), 'use_sigmoid'),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_head(ConfigDict(toy.pts_head(**changes)))


def test_legacy_names_load_from_a_plain_dict_and_current_names_too(head):
    current = head.state_dict()
    legacy = {
        key.replace('.attentions.0.', '.self_attn.')
        .replace('.attentions.1.', '.multihead_attn.')
        .replace('.decoder.post_norm.', '.decoder.norm.'): value
        for key, value in current.items()
    }
    assert set(legacy) != set(current)
    for state_dict in (legacy, dict(current)):
        build(toy.pts_head()).load_state_dict(state_dict, strict=True)


def test_points_are_the_same_by_camera_by_token_and_by_point(head):
    matrices = toy.rig()['lidar2img'].inverse()[None]
    frustum = head.frustum(SIZE)
    tokens = frustum.shape[0] // toy.NUM_CAMS
    by_camera = lidar_points(matrices, frustum)
    by_token = matrices.repeat_interleave(tokens, dim=1)
    by_point = by_token.unsqueeze(2).expand(-1, -1, frustum.shape[1], -1, -1)
    torch.testing.assert_close(lidar_points(by_token, frustum), by_camera)
    torch.testing.assert_close(lidar_points(by_point, frustum), by_camera)
    for token, depth in ((0, 0), (tokens, 63), (6 * tokens - 1, 5)):
        slow = matrices[0, token // tokens] @ frustum[token, depth]
        torch.testing.assert_close(by_camera[0, token, depth], slow[:3], atol=1e-4, rtol=1e-5)


def test_encodings_equal_their_definition():
    values = torch.tensor([[0.25, -0.5, 1.5]])
    ours, nerf = point_encoding(values, 8), nerf_encoding(values)
    for block, axis in enumerate((1, 0, 2)):
        for j in range(8):
            angle = values[0, axis] * 2 * torch.pi / 10000 ** (2 * (j // 2) / 8)
            expected = torch.sin(angle) if j % 2 == 0 else torch.cos(angle)
            torch.testing.assert_close(ours[0, 8 * block + j], expected)
    slow = [wave(values[0] * f) for f in (1, 2, 4, 8, 16, 32) for wave in (torch.sin, torch.cos)]
    torch.testing.assert_close(nerf[0], torch.cat(slow))
    assert torch.equal(sine_encoding(torch.zeros(1, 1), 4), torch.tensor([[0.0, 1.0, 0.0, 1.0]]))
    steps = [depth_bins(4, 1, 61, grow).tolist() for grow in (False, True)]
    assert steps == [[1, 16, 31, 46], [1, 7, 19, 37]]


def test_the_detector_starts_a_stream_with_each_scene():
    model = toy.build().eval()

    def scores(frame, scene):
        return model(return_loss=False, rescale=True, **toy.test_inputs(frame, frame, scene))[0]['pts_bbox'][
            'scores_3d'
        ]

    with torch.no_grad():
        first, second = scores(0, 'a'), scores(1, 'a')
        alone = scores(1, 'b')
        again = scores(0, 'a')
    assert torch.equal(first, again)
    assert not torch.equal(second, alone)
    torch.testing.assert_close(model.pts_bbox_head.memory.embedding.shape[1], ROWS)
