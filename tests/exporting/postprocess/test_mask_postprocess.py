"""Post-processing of masks, eager, exported and in numpy, equal to mmdet's `get_results` on random heads."""

import copy
import types

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv import ConfigDict
from mmdet.models.dense_heads import DecoupledSOLOHead, SOLOHead, SOLOV2Head

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.exporting.postprocess.mask import mask_config
from mmdeploy_ext.exporting.postprocess.mask_resize import resize_and_threshold
from mmdeploy_ext.exporting.postprocess.soft_masks import DynamicMasks
from mmdeploy_ext.families.solo import reference, runtime
from mmdeploy_ext.families.solo.facts import SoloFacts
from mmdeploy_ext.families.solo.graphs import SoloFullForm
from mmdeploy_ext.runtime.detections import Instances
from mmdeploy_ext.runtime.tasks.mask import match_detections

GRIDS, STRIDES, CLASSES, CHANNELS = [10, 8, 6, 4, 3], [8, 8, 16, 32, 32], 4, 12
QUARTER = (24, 32)
SETTINGS = dict(
    nms_pre=500, score_thr=0.1, mask_thr=0.5, filter_thr=0.05, kernel='gaussian', sigma=2.0, max_per_img=100
)
CASES = {
    'as published': {},
    'a cut before the matrix NMS': dict(nms_pre=20),
    'linear kernel': dict(kernel='linear', sigma=0.5),
    'everything kept': dict(nms_pre=-1, filter_thr=-1, max_per_img=-1),
    'other thresholds': dict(score_thr=0.3, mask_thr=0.35, filter_thr=0.2, max_per_img=7),
}


def make_head(kind, **changes):
    """Return an upstream head without a network: only its grids and thresholds are used."""
    head = kind.__new__(kind)
    torch.nn.Module.__init__(head)
    head.num_grids, head.strides, head.num_levels = GRIDS, STRIDES, len(GRIDS)
    head.num_classes = head.cls_out_channels = CLASSES
    head.test_cfg = ConfigDict(SETTINGS, **changes)
    head.fp16_enabled = False
    if kind is SOLOV2Head:
        head.kernel_out_channels, head.dynamic_conv_size, head.mask_stride = CHANNELS, 1, 4
        head.dcn_apply_to_all_conv = True
    return head


def level_maps(generator, channels, batch):
    """Return per level smooth maps (batch, channels, h, w) at QUARTER: blobs, not noise."""
    small = torch.randn(batch, channels, 6, 8, generator=generator) * 4
    return torch.nn.functional.interpolate(small, QUARTER, mode='bicubic')


def random_raw(kind, seed=0, batch=1, shift=0.0):
    """Return what mmdet's `get_results` takes, and the same as a `raw` graph names it."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(batch, CLASSES, grid, grid, generator=generator) - 1 + shift for grid in GRIDS]
    scores = [contract_points_nms(level) for level in logits]
    if kind is SOLOV2Head:
        kernels = [torch.randn(batch, CHANNELS, grid, grid, generator=generator) for grid in GRIDS]
        features = level_maps(generator, CHANNELS, batch).relu() / 4
        mmdet = (kernels, [level.clone() for level in logits], features)
        rest = [kernels, features]
    elif kind is SOLOHead:
        masks = [level_maps(generator, grid**2, batch).sigmoid() for grid in GRIDS]
        mmdet, rest = (masks, scores), [masks]
    else:
        x, y = ([level_maps(generator, grid, batch).add(2).sigmoid() for grid in GRIDS] for _ in range(2))
        mmdet, rest = (x, y, scores), [x, y]
    head = make_head(kind)
    raw = reference.arrange(head, scores, rest, 'batched')
    return mmdet, {name: tensor.contiguous() for name, tensor in raw.items()}


def contract_points_nms(logits):
    from mmdeploy_ext.families.solo.networks import points_nms

    return points_nms(logits)


def by_mmdet(kind, mmdet, img_shapes, ori_shape, **changes):
    head = make_head(kind, **changes)
    metas = [dict(img_shape=(*shape, 3), ori_shape=(*ori_shape, 3)) for shape in img_shapes]
    results = head.get_results(*copy.deepcopy(mmdet), img_metas=metas)
    return [
        Instances(found.masks.numpy().astype(bool), found.scores.numpy(), found.labels.numpy().astype(int))
        for found in results
    ]


def facts_of(kind, **changes):
    return SoloFacts(
        **mask_config(dict(SETTINGS, **changes)).to_json(),
        head=kind.__name__,
        num_grids=GRIDS,
        strides=STRIDES,
        num_classes=CLASSES,
        mask_stride=4,
    )


def by_numpy(kind, raw, img_shapes, ori_shape, **changes):
    metadata = types.SimpleNamespace(form='raw', postprocess=facts_of(kind, **changes), options={})
    feeds = dict(img_shape=np.asarray(img_shapes, np.float32), ori_shape=np.asarray(ori_shape))
    return runtime.detections(metadata, {name: tensor.numpy() for name, tensor in raw.items()}, feeds)


def full_form(kind, cap=0, **changes):
    return SoloFullForm(make_head(kind, **changes), cap).eval()


def by_graph(module, raw, img_shapes, ori_shape):
    with torch.no_grad():
        outputs = module(torch.tensor(img_shapes).float(), torch.tensor(ori_shape), *raw.values())
    return split(*(output.numpy() for output in outputs[:3]))


def split(masks, scores, labels):
    return [
        Instances(*(part[kinds >= 0] for part in (one, two, kinds)))
        for one, two, kinds in zip(masks, scores, labels, strict=True)
    ]


def check(expected, found, at_least):
    rows = [
        match_detections('image', *pair, score_thr=0.0, score_bar=1e-5)
        for pair in zip(expected, found, strict=True)
    ]
    assert all(row.passed for row in rows), rows
    assert [len(one) for one in expected] == [len(two) for two in found]
    assert min(row.matched for row in rows) >= at_least
    for one, two in zip(expected, found, strict=True):
        np.testing.assert_allclose(two.scores, one.scores, atol=1e-5)
        assert two.masks.shape == one.masks.shape and two.masks.dtype == bool


@pytest.mark.parametrize('kind', [DecoupledSOLOHead, SOLOV2Head])
@pytest.mark.parametrize('case', CASES)
def test_eager_and_numpy_equal_mmdet(kind, case):
    shapes, ori_shape = [(90, 128), (96, 100)], (75, 61)
    mmdet, raw = random_raw(kind, seed=len(case), batch=2)
    expected = by_mmdet(kind, mmdet, shapes, ori_shape, **CASES[case])
    check(expected, by_graph(full_form(kind, **CASES[case]), raw, shapes, ori_shape), at_least=3)
    check(expected, by_numpy(kind, raw, shapes, ori_shape, **CASES[case]), at_least=3)


def test_cells_beyond_the_first_look_still_come_in():
    # cells with a high class score and poor masks fill the first look; better masks are further down
    mmdet, raw = random_raw(SOLOV2Head, seed=5)
    for level in mmdet[0]:
        level[:, :, ::2] *= 0.05
    raw = reference.arrange(
        make_head(SOLOV2Head), [contract_points_nms(level) for level in mmdet[1]], [mmdet[0], mmdet[2]], ''
    )
    for nms_pre in (5, 17, 40):
        expected = by_mmdet(SOLOV2Head, mmdet, [(96, 128)], (96, 128), nms_pre=nms_pre)
        found = by_graph(full_form(SOLOV2Head, nms_pre=nms_pre), raw, [(96, 128)], (96, 128))
        check(expected, found, at_least=3)


FORKS = (SOLOHead, True, 2), (DecoupledSOLOHead, True, 2), (SOLOV2Head, True, 2), (SOLOV2Head, False, 2)


@pytest.mark.parametrize(('kind', 'flat', 'batch'), [*FORKS, (SOLOV2Head, True, 1)])
def test_outputs_in_the_layout_of_the_fork_are_joined_to_the_batched_ones(kind, flat, batch):
    head, (mmdet, raw) = make_head(kind), random_raw(kind, batch=batch)
    head.dcn_apply_to_all_conv = flat
    *rest, scores = mmdet
    if kind is SOLOV2Head:
        rest, scores = (mmdet[0], mmdet[2]), [contract_points_nms(level) for level in mmdet[1]]
    fork = reference.arrange(head, scores, rest, 'fork')
    found = runtime.batched({name: tensor.numpy() for name, tensor in fork.items()}, facts_of(kind))
    assert found.keys() >= raw.keys()
    for name, tensor in raw.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


@pytest.mark.parametrize(
    ('changes', 'count'), [(dict(score_thr=0.25), 1), (dict(filter_thr=0.5), 1), (dict(filter_thr=0.25), 2)]
)
def test_scores_at_a_threshold_are_results_where_mmdet_has_them(changes, count):
    kind, scores = DecoupledSOLOHead, [torch.zeros(1, CLASSES, grid, grid) for grid in GRIDS]
    x, y = ([torch.zeros(1, grid, *QUARTER) for grid in GRIDS] for _ in range(2))
    scores[0][0, 1, 0, 3], scores[0][0, 2, 4, 0] = 0.5, 0.25
    x[0][0, [0, 3]], y[0][0, 0, :9], y[0][0, 4, 12:] = 1.0, 1.0, 1.0  # masks that do not meet
    expected = by_mmdet(kind, (x, y, scores), [(96, 128)], (50, 40), **changes)
    assert len(expected[0]) == count
    raw = reference.arrange(make_head(kind), scores, [x, y], 'batched')
    for results in (by_graph(full_form(kind, **changes), raw, [(96, 128)], (50, 40)),
                    by_numpy(kind, raw, [(96, 128)], (50, 40), **changes)):  # fmt: skip
        check(expected, results, at_least=count)


@pytest.mark.parametrize('changes', [dict(score_thr=0.999), dict(mask_thr=0.999999)], ids=str)
def test_no_result_is_an_empty_result(changes):
    kind = SOLOV2Head
    mmdet, raw = random_raw(kind, seed=1)
    expected = by_mmdet(kind, mmdet, [(96, 128)], (50, 40), **changes)
    assert [len(one) for one in expected] == [0]
    for found in (
        by_graph(full_form(kind, **changes), raw, [(96, 128)], (50, 40)),
        by_graph(full_form(kind, cap=30, **changes), raw, [(96, 128)], (50, 40)),
        by_numpy(kind, raw, [(96, 128)], (50, 40), **changes),
    ):
        assert found[0].masks.shape == (0, 50, 40) and len(found[0]) == 0


def test_a_pixel_whose_sigmoid_rounds_above_one_is_one_pixel(monkeypatch):
    above_one = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item()
    monkeypatch.setattr(DynamicMasks, 'chunks', lambda *_: [torch.tensor([[[0.2, 0.75, above_one]]])])
    soft = DynamicMasks(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 3))
    areas, totals = soft.sums(torch.tensor([[0]]), mask_thr=0.5)
    assert (areas.tolist(), totals.tolist()) == ([[2.0]], [[1.75]])


@pytest.fixture(scope='module', params=['torchscript', pytest.param('dynamo', marks=pytest.mark.matrix)])
def session(request):
    """A SOLOv2 post-processing, traced on one input, as an ONNX Runtime session."""
    _, raw = random_raw(SOLOV2Head, seed=0)
    return export(full_form(SOLOV2Head, nms_pre=60), raw, exporter=request.param)


def export(module, raw, outputs=('masks', 'scores', 'labels'), exporter='torchscript'):
    example = (torch.tensor([[96.0, 120.0]]), torch.tensor([80, 90]), *raw.values())
    names = ['img_shape', 'ori_shape', *raw]
    dynamic = {name: {0: 'B'} for name in names if name != 'ori_shape'}
    dynamic['seg_pred'] = {0: 'B', 2: 'h', 3: 'w'}
    model = export_module(
        module.eval(), example, exporter=exporter, input_names=names, output_names=outputs, dynamic=dynamic
    )
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])


def by_session(session, raw, img_shapes, ori_shape):
    feeds = {name: tensor.numpy() for name, tensor in raw.items()}
    feeds.update(img_shape=np.asarray(img_shapes, np.float32), ori_shape=np.asarray(ori_shape))
    return session.run(None, feeds)


def test_a_graph_serves_other_batches_and_results(session):
    shapes, ori_shape = [(90, 128), (96, 100), (64, 64)], (131, 77)
    mmdet, raw = random_raw(SOLOV2Head, seed=9, batch=3)
    expected = by_mmdet(SOLOV2Head, mmdet, shapes, ori_shape, nms_pre=60)
    check(expected, split(*by_session(session, raw, shapes, ori_shape)), at_least=5)


def test_what_is_not_fed_is_the_size_of_the_input(session):
    _, raw = random_raw(SOLOV2Head, seed=6)
    wanted = by_session(session, raw, [(96, 128)], (96, 128))
    for got, expected in zip(by_session(session, raw, [(0, 0)], (0, 0)), wanted, strict=True):
        assert np.array_equal(got, expected)


def test_a_cap_keeps_shapes_constant_and_tells_when_it_cut():
    mmdet, raw = random_raw(SOLOV2Head, seed=7, shift=-1.5)
    candidates = int((raw['cate_pred'] > 0.1).sum())
    names = ('masks', 'scores', 'labels', 'candidates')
    wide = export(full_form(SOLOV2Head, cap=candidates + 5), raw, names)
    *outputs, count = by_session(wide, raw, [(96, 128)], (60, 70))
    assert count.tolist() == [candidates] and outputs[0].shape == (1, min(100, candidates + 5), 60, 70)
    check(by_mmdet(SOLOV2Head, mmdet, [(96, 128)], (60, 70)), split(*outputs), at_least=10)
    narrow = export(full_form(SOLOV2Head, cap=8), raw, names)
    *outputs, count = by_session(narrow, raw, [(96, 128)], (60, 70))
    assert count.tolist() == [candidates] and outputs[0].shape == (1, 8, 60, 70)


@pytest.mark.parametrize(
    ('target', 'crop'), [((50, 40), (90, 101)), ((427, 640), (33, 1)), ((1, 1), (96, 128))]
)
def test_the_composed_resize_equals_both_resizes(target, crop):
    soft = torch.rand(1, 5, *QUARTER, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.interpolate(soft, (96, 128), mode='bilinear')[:, :, : crop[0], : crop[1]]
    wanted = torch.nn.functional.interpolate(wanted, target, mode='bilinear')
    for thr in (0.35, 0.5):
        got = resize_and_threshold(soft, torch.tensor([crop]).float(), torch.tensor(target), 4, thr)
        other = runtime.resize_and_threshold(soft[0].numpy(), crop, target, 4, np.float32(thr))
        for masks in (got[0].numpy(), other):
            differ = masks != (wanted > thr)[0].numpy()
            assert np.abs(wanted[0].numpy()[differ] - thr).max(initial=0) <= 1e-6
