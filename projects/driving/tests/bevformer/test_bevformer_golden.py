"""BEVFormer with the goldens' seeded weights: every tensor of upstream's run, on its frames.

Tolerances: ../shared/golden/bevformer/INDEX.md. The suite has the rotations and the coder; the matrix has the
head alone, all frames of the whole model, and the encoder of bevformer_small.
"""

import json

import numpy as np
import pytest
import torch
from mmdet3d.models import build_head, build_model

import bevformer_golden as golden
import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from mm2onnx_driving.layers.bev_steps import (
    LastView,
    encode_view,
    pillar_points,
    project_pillars,
    rotate_view,
    rotated_cells,
)
from mm2onnx_driving.layers.bev_view import last_view
from mm2onnx_driving.layers.datasets import motion_of_car
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.taps import collect_taps
from mmdeploy_ext.runtime.bev_motion import YAW_DEG, bev_rotation, bev_shift, motion_since
from mmdeploy_ext.upstream.models.conditional_detr import QueryBoxCoder

MODELS = 'projects/configs/_base_/models/bevformer_{}.py'
SHAPE = [(480, 800, 3)] * 6
EXTENT = (102.4, 102.4)
BEV, LOGITS, METRES, OTHER, SCORES = 5e-5, 5e-4, 2e-3, 5e-4, 1e-4
CENTRE = [0, 1, 4]
SIZES = [2, 3, 5, 6, 7, 8, 9]
NEAR_TIES = {'rot_150_c100_-359.5': 1, 'rot_200_c100_-1.035': 2}
"""Maps in which so many cells are so near to a tie that float32 decides, see INDEX.md."""


@pytest.fixture(scope='module')
def model():
    model = build_model(load_config(MODELS.format('tiny')).model).eval()
    model.load_state_dict(golden.state_dict(golden.keys_of()), strict=True)
    return model


def arrays(name):
    return np.load(golden.require_golden() / name)


def same_logits_and_boxes(logits, boxes, expected_logits, expected_boxes):
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=LOGITS)
    np.testing.assert_allclose(boxes[..., CENTRE], expected_boxes[..., CENTRE], rtol=0, atol=METRES)
    np.testing.assert_allclose(boxes[..., SIZES], expected_boxes[..., SIZES], rtol=0, atol=OTHER)


def same_detections(decoded, boxes, scores, labels):
    """The same boxes in any order of near ties: each of the expected ones has its own partner."""
    bottom = np.array(decoded['bboxes'])
    bottom[:, 2] -= bottom[:, 5] / 2
    assert len(bottom) == len(boxes)
    differences = np.abs(bottom[None] - boxes[:, None]).max(-1)
    differences[labels[:, None] != np.array(decoded['labels'])[None]] = np.inf
    partner = differences.argmin(1)
    assert len(set(partner)) == len(boxes) and differences[range(len(boxes)), partner].max() <= METRES
    np.testing.assert_allclose(np.array(decoded['scores'])[partner], scores, rtol=0, atol=SCORES)


@pytest.mark.matrix
def test_the_filled_weights_are_those_of_the_goldens():
    keys = golden.keys_of()
    checks = json.loads((golden.require_golden() / 'fill_check.json').read_text())
    assert golden.fill_sha256(golden.state_dict(keys)) == checks['fill_sha256']


@pytest.mark.matrix
@pytest.mark.parametrize('case', range(5))
def test_the_head_alone(model, case):
    stored = arrays('head_only.npz')
    expected = {
        key.removeprefix(f'h{case}_'): stored[key] for key in stored.files if key.startswith(f'h{case}_')
    }
    maps = [golden.normal(f'feat_{case}', (1, 6, 256, 15, 25), 0.35)]
    last = golden.normal(f'prev_bev_{case}', (2500, 1, 256)) if case else None
    meta = dict(can_bus=expected['can_bus'], lidar2img=expected['lidar2img'], img_shape=SHAPE)
    with torch.no_grad(), collect_taps() as taps:
        outputs = model.pts_bbox_head(maps, [meta], last)
    np.testing.assert_allclose(
        outputs['bev_embed'][::10, 0, ::8], expected['bev_embed_slice'], rtol=0, atol=BEV
    )
    for layer in range(3):
        np.testing.assert_allclose(
            taps[f'enc{layer}'][0, ::25, ::8], expected[f'enc{layer}_slice'], rtol=0, atol=BEV
        )
    for layer, step, name in ((-1, 1, 'last'), (0, 3, '0')):
        same_logits_and_boxes(
            outputs['all_cls_scores'][layer, 0, ::step].numpy(),
            outputs['all_bbox_preds'][layer, 0, ::step].numpy(),
            expected[f'all_cls_scores_{name}'],
            expected[f'all_bbox_preds_{name}'],
        )
    if case:
        shift = bev_shift(expected['can_bus'], EXTENT)
        np.testing.assert_allclose(shift, expected['shift'], rtol=0, atol=1e-6)
    decoded = model.pts_bbox_head.bbox_coder.decode_single(
        outputs['all_cls_scores'][-1, 0], outputs['all_bbox_preds'][-1, 0]
    )
    same_detections(decoded, expected['boxes_3d'], expected['scores_3d'], expected['labels_3d'])


def test_rotations_copy_the_cells_that_torchvision_copies():
    stored = np.load(golden.IN_REPOSITORY / 'rotate.npz')
    for name in stored.files:
        _, size, center, angle = name.split('_')
        side, about = int(size), float(center.removeprefix('c'))
        matrix = torch.from_numpy(bev_rotation(float(angle), (about, about), (side, side)))
        source, is_inside = rotated_cells(matrix, side, side)
        cells = np.where(is_inside, source, -1)
        assert (cells != stored[name]).sum() <= NEAR_TIES.get(name, 0), name


def test_the_data_set_makes_the_records_of_upstreams():
    stored = arrays('inputs.npz')
    for frame in range(8):
        record = stored[f'f{frame}_can_bus_raw']
        info = {key: stored[f'f{frame}_{key}'] for key in ('ego2global_translation', 'ego2global_rotation')}
        info['can_bus'] = np.r_[np.ones(7), record[7:16], 1, 1]
        np.testing.assert_allclose(motion_of_car(info, 'info'), record, rtol=1e-12)
        assert info['can_bus'][0] == 1  # the info stays as it is


def test_the_coder_filters_by_score_and_place():
    stored = np.load(golden.IN_REPOSITORY / 'decode.npz')
    logits, boxes = (torch.from_numpy(stored[f'all_{name}']) for name in ('cls_scores', 'bbox_preds'))
    for case in range(5):
        options = json.loads(bytes(stored[f'd{case}_args_json']).decode())
        decoded = QueryBoxCoder(pc_range=None, **options).decode_single(logits, boxes)
        expected = [stored[f'd{case}_{name}'] for name in ('bboxes', 'scores', 'labels')]
        expected[0][:, 2] -= expected[0][:, 5] / 2
        same_detections(decoded, *expected)


@pytest.mark.matrix
def test_every_frame_of_the_whole_model(model):
    inputs, outputs = arrays('inputs.npz'), arrays('outputs.npz')
    model.reset()
    raw = None
    for frame in range(8):

        def stored(name, source=outputs, frame=frame):
            return source[f'f{frame}_{name}']

        meta = dict(
            can_bus=stored('can_bus_raw', inputs),
            lidar2img=stored('lidar2img', inputs),
            pad_shape=SHAPE,
            scene_token=str(stored('scene', inputs)),
        )
        is_first = not float(stored('use_prev_bev', inputs)[0])
        motion = motion_since(meta['can_bus'], None if is_first else raw)
        raw = meta['can_bus']
        np.testing.assert_allclose(motion, stored('can_bus', inputs), rtol=0, atol=1e-9)
        with torch.no_grad(), collect_taps() as taps:
            result = model.run_frame([meta], golden.pictures(frame))
        np.testing.assert_allclose(
            taps['bev_query'][0, ::25, ::8], stored('bev_query_slice').reshape(100, 32), rtol=0, atol=BEV
        )
        view = result['bev_embed']
        np.testing.assert_allclose(view[::10, 0, ::4], stored('bev_embed_slice'), rtol=0, atol=BEV)
        same_logits_and_boxes(
            result['all_cls_scores'][-1, 0].numpy(),
            result['all_bbox_preds'][-1, 0].numpy(),
            stored('all_cls_scores_last'),
            stored('all_bbox_preds_last'),
        )
        points = pillar_points(50, 50, 4, model.pts_bbox_head.transformer.encoder.pc_range)
        matrices = torch.from_numpy(stored('lidar2img', inputs).astype(np.float32))
        _, is_seen = project_pillars(points, matrices, (480, 800))
        packed = np.packbits(is_seen.numpy().reshape(-1))
        assert (packed == stored('bev_mask_packed').reshape(-1)).all()
        if not is_first:
            matrix = bev_rotation(motion[YAW_DEG], (100, 100), (50, 50))
            _, is_inside = rotated_cells(torch.from_numpy(matrix), 50, 50)
            assert (np.packbits(~is_inside.numpy()) == stored('prev_bev_rot_zero_packed')).all()
        decoded = model.pts_bbox_head.bbox_coder.decode_single(
            result['all_cls_scores'][-1, 0], result['all_bbox_preds'][-1, 0]
        )
        same_detections(decoded, stored('boxes_3d'), stored('scores_3d'), stored('labels_3d'))


def view_of_the_runtime(last, motion, side):
    """Return the last view (Q, 1, C), None at the first frame, as the graph's encoder takes it."""
    if last is None:
        return LastView(torch.zeros(1, side * side, 256), torch.zeros(2), torch.zeros(1))
    rotation = torch.from_numpy(bev_rotation(motion[YAW_DEG], (100, 100), (side, side)))
    shift = torch.from_numpy(bev_shift(motion, EXTENT).astype(np.float32))
    return LastView(rotate_view(last[:, 0], rotation, side, side)[None], shift, torch.ones(1))


@pytest.mark.matrix
def test_the_encoder_of_bevformer_small():
    stored = arrays('small_encoder.npz')
    head = build_head(load_config(MODELS.format('small')).model.pts_bbox_head).eval()
    keys = golden.keys_of('state_dict_small_head.json')
    weights = {key.removeprefix('pts_bbox_head.'): value for key, value in golden.state_dict(keys).items()}
    missing, unexpected = head.load_state_dict(weights, strict=False)
    assert not unexpected and all(
        key.split('.')[0].endswith('branches')
        or 'decoder' in key
        or 'reference' in key
        or 'query_embedding' in key
        or 'code_weights' in key
        for key in missing
    )
    for case in ('s0', 's1'):
        maps = golden.normal(f'small_feat_{case}', (1, 6, 256, 23, 40), 0.35)[0]
        last = None if case == 's0' else golden.normal('small_prev_bev_s1', (22500, 1, 256))
        can_bus = stored[f'{case}_can_bus']
        matrices = torch.from_numpy(stored[f'{case}_lidar2img'].astype(np.float32))
        record = torch.from_numpy(can_bus.astype(np.float32))
        with torch.no_grad():
            sides = last_view(head, can_bus, last), view_of_the_runtime(last, can_bus, 150)
            views = [encode_view(head, [maps], record, matrices, (736, 1280), side)[0] for side in sides]
        for view in views:
            np.testing.assert_allclose(view[::45, ::8], stored[f'{case}_bev_slice'], rtol=0, atol=BEV)
            row = view.reshape(150, 150, 256)[75, :, ::4]
            np.testing.assert_allclose(row, stored[f'{case}_bev_row75'], rtol=0, atol=BEV)
