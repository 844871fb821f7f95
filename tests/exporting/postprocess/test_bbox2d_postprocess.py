"""The `full` post-processing equals mmdet's unpatched `get_bboxes`, in PyTorch, in ONNX and in numpy."""

import functools
import inspect

import mmcv.ops
import numpy as np
import pytest
import torch

from dense_bench import (
    CLASSES,
    RAW_NAMES,
    STRIDES,
    TEST_CFG,
    assert_same,
    by_mmdet,
    by_numpy,
    eager,
    exported,
    full_inputs,
    make_head,
    random_outputs,
    run,
    unpadded,
)
from marking import in_suite
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.bbox2d import DenseBoxPostprocess
from mmdeploy_ext.exporting.postprocess.suppression import nms_config
from mmdeploy_ext.families.dense import runtime
from mmdeploy_ext.runtime.box_coders import Distance
from mmdeploy_ext.runtime.dense_facts import DenseFacts, Head

SIZE = (96, 128)
TIED_SIZE = (48, 40)
NMS = TEST_CFG['nms']
ALL = 10**6
CASES = {
    'default': {},
    'nms_pre between the levels': dict(nms_pre=300, score_thr=0.01),
    'class agnostic': dict(nms=dict(NMS, class_agnostic=True)),
    'score_thr 0': dict(score_thr=0.0, nms_pre=400),
    'boxes not clipped': dict(clip_border=False),
    'centred anchors': dict(center_offset=0.5),
    'two anchors per cell': dict(scales_per_octave=2),
}
REQUESTS = {
    'two images': dict(batch=2),
    'content smaller than the input': dict(batch=2, img_shape=[(70, 90), (96, 61)]),
    'rescaled unequally': dict(
        batch=2, scale_factor=[(0.5, 0.25, 0.5, 0.25), (2.0, 3.0, 2.0, 3.0)], img_shape=[(96, 128), (50, 128)]
    ),
}


def request_arrays(batch, **optional):
    return batch, {name: np.asarray(value, np.float32) for name, value in optional.items()}


def outputs_for(head, seed, batch, size=SIZE, **values):
    return random_outputs(seed, batch, size, anchors=len(head.prior_generator.base_anchors[0]), **values)


@pytest.mark.parametrize('case', CASES)
def test_eager_and_numpy_equal_get_bboxes(case):
    head = make_head(**CASES[case])
    for request in REQUESTS.values():
        batch, optional = request_arrays(**request)
        raw = outputs_for(head, 1, batch)
        wanted = by_mmdet(head, raw, SIZE, **optional)
        assert sum(len(labels) for _, labels in wanted) > 0
        assert_same(unpadded(*eager(head, raw, SIZE, **optional)), wanted)
        for form in ('raw', 'decode'):
            assert_same(by_numpy(head, raw, SIZE, form, **optional), wanted)


def test_a_score_at_the_threshold_is_no_result():
    head = make_head(score_thr=0.5)
    raw = outputs_for(head, 1, 1, TIED_SIZE)
    for logits in raw[: len(STRIDES)]:
        logits.zero_()  # a sigmoid of 0.5
    raw[0][0, 1, 2, 3] = 1.0
    wanted = by_mmdet(head, raw, TIED_SIZE)
    assert [labels.tolist() for _, labels in wanted] == [[1]]
    assert_same(unpadded(*eager(head, raw, TIED_SIZE)), wanted)
    assert_same(by_numpy(head, raw, TIED_SIZE, 'raw'), wanted)


@functools.cache
def default_file():
    return exported(make_head(), 17)


EXPORTED = in_suite(
    [(case, 17) for case in CASES] + [('default', 11), ('default', 20), ('two anchors per cell', 20)],
    ('default', 17),
    ('class agnostic', 17),
)


@pytest.mark.parametrize(('case', 'opset'), EXPORTED)
def test_exported_equals_get_bboxes_on_unseen_sizes_batches_and_values(case, opset):
    head = make_head(**CASES[case])
    session = default_file() if (case, opset) == ('default', 17) else exported(head, opset)
    for seed, (request_name, request) in enumerate(REQUESTS.items()):
        size = (40, 72) if request_name == 'two images' else SIZE
        batch, optional = request_arrays(**request)
        raw = outputs_for(head, seed, batch, size)
        wanted = by_mmdet(head, raw, size, **optional)
        assert_same(unpadded(*run(session, raw, size, **optional)), wanted)


def blank(raw, image, keep=()):
    """Silence an image but for single (level, class, y, x) logits."""
    for level in range(len(STRIDES)):
        raw[level][image] = -20.0
    for level, label, y, x in keep:
        raw[level][image, label, y, x] = 3.0


@pytest.fixture(scope='module', params=in_suite(['torchscript', 'dynamo'], 'torchscript'))
def engine(request):
    """Return a head, and a function from its outputs to the padded outputs of its file."""
    head = make_head()
    session = default_file() if request.param == 'torchscript' else exported(head, 18, exporter=request.param)
    return head, lambda raw: run(session, raw, SIZE)


@pytest.mark.parametrize(
    ('first', 'second', 'counts'),
    [([], None, [0]), ([], [(2, 4, 0, 0), (0, 4, 9, 9)], [0, 2]), ([(2, 4, 0, 0)], 'busy', [1, None])],
)
def test_unequal_counts_none_and_one(engine, first, second, counts):
    head, infer = engine
    raw = random_outputs(5, len(counts), SIZE)
    blank(raw, 0, first)
    if second not in (None, 'busy'):
        blank(raw, 1, second)
    wanted = by_mmdet(head, raw, SIZE)
    assert [len(labels) for _, labels in wanted] == [
        len(wanted[index][1]) if count is None else count for index, count in enumerate(counts)
    ]
    found = infer(raw)
    assert found[0].shape == (len(counts), max(len(labels) for _, labels in wanted), 5)
    assert_same(unpadded(*found), wanted)
    assert_same(by_numpy(head, raw, SIZE), wanted)


def test_exact_score_ties_give_the_same_set():
    head = make_head(nms_pre=ALL, max_per_img=ALL, nms=dict(type='nms', iou_threshold=0.9), score_thr=0.01)
    raw = random_outputs(3, 2, TIED_SIZE, deltas=0.0)
    for level in range(3):
        raw[level] = torch.round(raw[level] * 2) - 1
        raw[level + 6] = torch.zeros_like(raw[level + 6])
    wanted = by_mmdet(head, raw, TIED_SIZE)
    assert len(np.unique(wanted[0][0][:, 4])) < len(wanted[0][0]) / 4
    assert_same(unpadded(*eager(head, raw, TIED_SIZE)), wanted)
    assert_same(by_numpy(head, raw, TIED_SIZE), wanted)


def test_more_candidates_than_mmcv_suppresses_at_once_agree():
    head = make_head(score_thr=0.0, nms_pre=ALL, max_per_img=200, nms=dict(NMS, split_thr=100))
    raw = random_outputs(21, 1, TIED_SIZE)
    assert sum(level.numel() for level in raw[: len(STRIDES)]) > 2 * head.test_cfg.nms.split_thr
    wanted = by_mmdet(head, raw, TIED_SIZE)
    assert_same(unpadded(*eager(head, raw, TIED_SIZE)), wanted)
    assert_same(by_numpy(head, raw, TIED_SIZE), wanted)


def test_optional_inputs_default_to_the_whole_input_and_no_rescaling():
    raw, session = random_outputs(8, 2, SIZE), default_file()
    required = {value.name for value in session.get_inputs()}
    optional = {value.name for value in session.get_overridable_initializers()}
    assert optional == {'img_shape', 'scale_factor'}
    assert required == {'input', *RAW_NAMES}
    bare = {name: full_inputs(raw, SIZE)[name].numpy() for name in required}
    whole = run(session, raw, SIZE, img_shape=[SIZE] * 2, scale_factor=np.ones((2, 4)))
    for wanted, got in zip(whole, session.run(['dets', 'labels'], bare), strict=True):
        np.testing.assert_array_equal(got, wanted)
    smaller = run(session, raw, SIZE, img_shape=[(50, 60)] * 2, scale_factor=np.full((2, 4), 2.0))
    assert smaller[0][..., :4].max() <= 30 < whole[0][..., :4].max()


@pytest.mark.parametrize(
    ('test_cfg', 'named'),
    [
        (dict(nms=dict(type='soft_nms', iou_threshold=0.5)), "nms.type='soft_nms'"),
        (dict(nms=dict(type='nms', iou_threshold=0.5, max_num=3)), 'max_num'),
        (dict(nms_pre=0, nms=NMS), 'nms_pre=0'),
        (dict(score_thr='abc', nms=NMS), "score_thr='abc'"),
    ],
)
def test_settings_without_an_equal_graph_are_refused_by_name(test_cfg, named):
    with pytest.raises(ConfigError, match=named):
        nms_config(test_cfg)


def test_what_a_config_leaves_out_has_the_default_of_mmcv():
    nms = dict(type='soft_nms', iou_thr=0.4)
    test_cfg = dict(nms=nms, nms_pre=9, deploy_nms_pre=5, max_per_img=7)
    found = nms_config(test_cfg, soft=True)
    assert (found.nms_pre, found.max_per_img, found.iou_threshold, found.score_thr) == (5, 7, 0.4, 0)
    assert not found.class_agnostic
    defaults = inspect.signature(mmcv.ops.soft_nms).parameters
    for name in ('method', 'sigma', 'min_score'):
        assert getattr(found, name) == defaults[name].default


def test_no_limit_means_all_of_them():
    head = make_head(max_per_img=-1, nms_pre=-1)
    raw = random_outputs(4, 1, TIED_SIZE)
    wanted = by_mmdet(head, raw, TIED_SIZE, nms_pre=ALL, max_per_img=ALL)
    assert len(wanted[0][1]) > 50
    assert_same(unpadded(*eager(head, raw, TIED_SIZE)), wanted)
    assert_same(by_numpy(head, raw, TIED_SIZE), wanted)
    assert int(wanted[0][1].max()) < CLASSES


def test_priors_are_chosen_by_scores_and_factor():
    generator = np.random.default_rng(3)
    scores, factors = (generator.random(shape, np.float32) for shape in ((1, 9, CLASSES), (1, 9)))
    corners = np.sort(generator.random((1, 9, 2, 2), np.float32), axis=2) * 30
    boxes = corners.reshape(1, 9, 4)
    outputs = (('cls_score', CLASSES), ('bbox_pred', 4), ('factor', 1))
    facts = DenseFacts(
        **dict(score_thr=0.2, nms_pre=4, iou_threshold=1.0, max_per_img=100, clip_border=True),
        strides=[8],
        base_anchors=[[[0, 0]]],
        coder=Distance(),
        head=Head(outputs, factor='factor', factor_from=('factor', 0), choose='priors', conf_thr=0.3),
        num_classes=CLASSES,
    )
    best = sorted(range(9), key=lambda prior: -scores[0, prior].max() * factors[0, prior])[:4]
    expected = sorted(
        (float(scores[0, prior, label] * factors[0, prior]), label)
        for prior in best
        for label in range(CLASSES)
        if scores[0, prior, label] > 0.2 and factors[0, prior] >= 0.3
    )
    size, no_scale = torch.tensor([[30.0, 30]]), torch.ones(1, 4)
    levels = ([torch.from_numpy(level)] for level in (boxes, scores, factors))
    dets, labels = DenseBoxPostprocess(facts)(*levels, size, no_scale)
    priors = runtime.DecodedPriors(boxes[0], scores[0], factors[0])
    by_numpy = runtime.postprocess_image(priors, [9], (30, 30), np.ones(4, np.float32), facts)
    for result_scores, result_labels in ((dets[0, :, 4], labels[0]), (by_numpy.scores, by_numpy.labels)):
        found = sorted(zip(map(float, result_scores), map(int, result_labels), strict=True))
        assert [label for _, label in found] == [label for _, label in expected]
        assert np.allclose([score for score, _ in found], [score for score, _ in expected], atol=1e-6)
