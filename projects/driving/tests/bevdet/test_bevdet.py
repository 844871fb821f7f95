"""BEVDet and BEVDet4D with the goldens' seeded weights: the tensors of upstream's run, on its frames.

Tolerances: ../shared/golden/bevdet/INDEX.md. The suite decodes stored maps; the matrix runs both models.
"""

import json

import numpy as np
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.models import build_head, build_model

import bevdet_golden as golden
from mm2onnx_driving.layers import lift_splat
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.taps import collect_taps
from mmdeploy_ext.upstream.models.catalogue import register_named

META = dict(box_type_3d=LiDARInstance3DBoxes)


def model_of(name):
    cfg = load_config(golden.CONFIGS[name])
    register_named(cfg)
    model = build_model(cfg.model).eval()
    model.load_state_dict(golden.state_dict(name), strict=True)
    return model


def inputs_of(name, frame):
    """`img_inputs` of a frame: of r50 one, of lt nine, pictures by camera and matrices by frame."""
    if name == 'r50':
        index = json.loads(bytes(frame['meta_json']))['info_index']
        images = golden.picture(index)
    else:
        images = torch.stack([golden.picture(index) for index in frame['frames']], 1).flatten(0, 1)
    count = 9 if name == 'lt' else 1
    poses = [frame[key].reshape(-1, 4, 4) for key in ('sensor2ego', 'ego2global')]
    rest = [np.concatenate([frame[key]] * count) for key in ('intrin', 'post_rot', 'post_tran')]
    return [images[None], *(torch.from_numpy(values)[None] for values in (*poses, *rest, frame['bda']))]


def injected(monkeypatch, stored, prefix):
    """Put points within 2e-4 of a cell's border where upstream put them."""
    ambiguous, places = (stored[f'{prefix}_cell_ambiguous{end}'].astype(np.int64) for end in ('', '_cell'))
    plain = lift_splat.cells_of

    def cells_of(*args):
        cells = plain(*args)
        flat = cells.flatten(1)
        outside = torch.from_numpy(np.where(places < 0, 128 * 128, places))
        flat[:, ambiguous] = outside
        injected.cells = flat
        return flat.reshape(cells.shape)

    monkeypatch.setattr(lift_splat, 'cells_of', cells_of)


def close(values, expected, tolerance):
    np.testing.assert_allclose(np.asarray(values), expected, rtol=0, atol=tolerance)


def same_boxes(got, expected, boxes_tolerance):
    boxes, scores, labels = got
    assert len(boxes) == len(expected[0])
    gaps = np.abs(boxes[None] - expected[0][:, None]).max(-1)
    gaps[expected[2][:, None] != labels[None]] = np.inf
    partner = gaps.argmin(1)
    assert len(set(partner)) == len(boxes) and gaps[range(len(boxes)), partner].max() <= boxes_tolerance
    close(scores[partner], expected[1], 1e-4)


def result_of(stored, prefix):
    return [stored[f'{prefix}_{key}'] for key in ('boxes_3d', 'scores_3d', 'labels_3d')]


@pytest.mark.parametrize('name', ['r50_f0', 'r50_f1', 'lt_f0'])
def test_the_head_decodes_and_suppresses_as_upstream(name):
    cfg = load_config(golden.CONFIGS['r50'])
    register_named(cfg)
    head = build_head(dict(cfg.model.pts_bbox_head, type='BEVDetCenterHead', test_cfg=cfg.model.test_cfg.pts))
    maps = {key: torch.from_numpy(value)[None] for key, value in golden.head_maps(name).items()}
    ((boxes, scores, labels),) = head.get_bboxes([[maps]], [META])
    expected = result_of(golden.arrays('outputs'), name)
    close(boxes.tensor, expected[0], 1e-4)
    close(scores, expected[1], 1e-6)
    np.testing.assert_array_equal(labels, expected[2])


@pytest.mark.matrix
@pytest.mark.parametrize('name', ['r50', 'lt'])
def test_the_filled_weights_are_those_of_the_goldens(name):
    folder = golden.require_golden()
    expected = json.loads((folder / f'state_dict_{name}.json').read_text())['fill_sha256']
    assert golden.fill_sha256(golden.state_dict(name)) == expected


@pytest.mark.matrix
@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('prefix', ['r50_f1', 'lt_f0', 'lt_f1'])
def test_every_step_is_upstreams(monkeypatch, prefix, threads):
    name, stored, frame = prefix[:3].rstrip('_'), golden.arrays('outputs'), golden.frame(prefix)
    model = model_of(name)
    injected(monkeypatch, stored, prefix)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad(), collect_taps() as taps:
            (result,) = model(return_loss=False, img_metas=[[META]], img_inputs=[inputs_of(name, frame)])
            taps = {key: np.asarray(value) for key, value in taps.items()}
    finally:
        torch.set_num_threads(before)
    cells = np.asarray(injected.cells)[0]
    counts = np.bincount(cells, minlength=128 * 128 + 1)[:-1].reshape(128, 128)
    np.testing.assert_array_equal(counts, stored[f'{prefix}_cell_counts'])
    close(taps['bev_neck'][0, ::16, ::8, ::8], stored[f'{prefix}_bev_neck_slice'], 3e-4)
    if name == 'r50':
        close(taps['neck'][:, ::16, ::5, ::8], stored[f'{prefix}_neck_slice'], 1e-4)
        close(taps['depth'][:, ::4, ::5, ::8], stored[f'{prefix}_depth_slice'], 1e-5)
        close(taps['bev_feat'][0, ::8, ::4, ::4], stored[f'{prefix}_bev_feat_slice'], 2e-4)
    for head in golden.HEADS:
        expected = stored[f'{prefix}_{head}']
        step = 1 if expected.shape[-1] == 128 else 3
        got = taps[head][0] if step == 1 else taps[head][0, :, 1::3, 1::3]
        close(got, expected, 5e-4 if name == 'r50' else 2e-3)
    found = result['pts_bbox']
    got = [
        np.asarray(found['boxes_3d'].tensor),
        np.asarray(found['scores_3d']),
        np.asarray(found['labels_3d']),
    ]
    same_boxes(got, result_of(stored, prefix), 5e-4 if name == 'r50' else 1e-2)
