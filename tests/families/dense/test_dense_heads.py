"""Every kind of dense head against mmdet's own `get_bboxes` and coders, on random outputs."""

import types

import numpy as np
import onnxruntime
import pytest
import torch
from mmdet.models import HEADS as REGISTERED
from mmdet.models.dense_heads import GFLHead

import dense_heads
import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from dense_heads import BORDERS, CONFIGS, HEADS, ONE_IMAGE, by_mmdet, detector, make_head, random_outputs
from marking import in_suite
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.exporting import export
from mmdeploy_ext.families.common.runtime import dense
from mmdeploy_ext.families.dense import heads, reference, runtime
from mmdeploy_ext.families.dense.graphs import DecodeForm, DenseFullForm, decode_names, raw_names
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec

SIZE = (128, 192)
CLIPS = (121.0, 180.0)


def same(found, wanted, scale):
    """Assert that two lists of (dets, labels) hold the same detections, in any order."""
    assert len(found) == len(wanted)
    for (dets, labels), (wanted_dets, wanted_labels) in zip(found, wanted, strict=True):
        assert len(dets) == len(wanted_dets) > 0
        free = list(range(len(dets)))
        for row, label in zip(wanted_dets, wanted_labels, strict=True):
            near = [
                index
                for index in free
                if labels[index] == label
                and abs(dets[index, 4] - row[4]) <= 1e-5
                and np.abs(dets[index, :4] - row[:4]).max() <= 1e-4 * scale
            ]
            assert near, f'no detection like {row} of class {label}'
            free.remove(near[0])


def images(head, seed=0, size=SIZE):
    """Return raw outputs of a batch, and what each image is clipped to and divided by."""
    batch = 1 if type(head).__name__ in ONE_IMAGE else 2
    clips = [CLIPS, tuple(map(float, size))][:batch]
    scales = [np.array([1.5, 1.25, 1.5, 1.25], np.float32), np.ones(4, np.float32)][:batch]
    return random_outputs(head, seed, batch, size), clips, scales


def inputs(form, raw, clips, scales, size=SIZE):
    given = [torch.zeros(len(clips), 3, *size), torch.tensor(clips), torch.tensor(np.stack(scales))]
    if form.postprocess.facts.head.bordered:
        given.append(torch.tensor(BORDERS[: len(clips)]))
    return [*given, *raw]


def unpadded(dets, labels):
    return [(rows[kinds >= 0], kinds[kinds >= 0]) for rows, kinds in zip(dets, labels, strict=True)]


def eager(form, *given):
    with torch.no_grad():
        dets, labels = form(*inputs(form, *given))[:2]
    return unpadded(dets.numpy(), labels.numpy())


@pytest.fixture(scope='module', params=HEADS)
def head(request):
    return make_head(request.param)


def test_detections_are_those_of_get_bboxes(head):
    raw, clips, scales = images(head)
    wanted = by_mmdet(head, raw, clips, scales)
    same(eager(DenseFullForm(detector(head)), raw, clips, scales), wanted, max(SIZE))
    facts = dense_heads.FAMILY.facts(detector(head))
    metadata = types.SimpleNamespace(form='raw', postprocess=facts, options={})
    feeds = dict(
        input=np.zeros((len(clips), 3, *SIZE), np.float32),
        img_shape=np.asarray(clips, np.float32),
        scale_factor=np.stack(scales),
        border=np.asarray(BORDERS[: len(clips)], np.float32),
    )
    named = dict(zip(raw_names(detector(head)), (tensor.numpy() for tensor in raw), strict=True))
    found = runtime.detections(metadata, named, feeds)
    same([(np.c_[one.bboxes_xyxy, one.scores], one.labels) for one in found], wanted, max(SIZE))


@pytest.mark.parametrize('name', ['FCOSHead', 'YOLOV3Head', 'YOLOXHead', 'CenterNetHead'])
def test_a_limit_that_no_image_reaches_changes_nothing(name):
    head = make_head(name)
    raw, clips, scales = images(head)
    facts = heads.facts_of(head)
    shapes = [tuple(-(-side // stride) for side in SIZE) for stride in facts.strides]
    cap = min(2000, dense.largest_num_candidates(facts, shapes))
    found = eager(DenseFullForm(detector(head), cap), raw, clips, scales)
    same(found, by_mmdet(head, raw, clips, scales), max(SIZE))


def test_decoded_tensors_are_those_of_the_heads_own_coder(head):
    raw, _, _ = images(head)
    model = detector(head)
    named = dict(zip(raw_names(model), raw, strict=True))
    wanted = reference.decoded(model, named)
    names = decode_names(model, types.SimpleNamespace(score_form='separate'))
    with torch.no_grad():
        decoded = [value.numpy() for value in DecodeForm(model, False)(*raw)]
    found = dict(zip(names, decoded, strict=True))
    facts = dense_heads.FAMILY.facts(model)
    by_numpy = dense.decode_raw({name: one.numpy() for name, one in named.items()}, *SIZE, facts)
    assert found.keys() == wanted.keys() <= by_numpy.keys()
    for name, value in wanted.items():
        for ours in (found[name], by_numpy[name]):
            np.testing.assert_allclose(ours, value, atol=1e-5 * max(1.0, np.abs(value).max()), err_msg=name)


@pytest.mark.parametrize(
    'name',
    in_suite(
        ['SSDHead', 'PAAHead', 'SABLRetinaHead', 'YOLOV3Head', 'YOLOXHead', 'GFLHead', 'CenterNetHead'],
        *('YOLOXHead', 'CenterNetHead'),
    ),
)
def test_the_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(name):
    head = make_head(name)
    raw, clips, scales = images(head, 3, (128, 160))
    form = DenseFullForm(detector(head))
    traced = inputs(form, raw[:], clips, scales, (128, 160))
    bordered = form.postprocess.facts.head.bordered
    first = ('input', 'img_shape', 'scale_factor', *(['border'] if bordered else []))
    names = (*first, *raw_names(detector(head)))
    axes = [('B', 3, 'H', 'W'), ('B', 2), ('B', 4), ('B', 2)][: len(first)]
    maps = zip(names[len(first) :], raw, strict=True)
    axes += [('B', tensor.shape[1], f'{one}h', f'{one}w') for one, tensor in maps]
    clipped = heads.facts_of(head).clip_border
    contract = GraphSpec(
        'postprocess',
        tuple(
            TensorSpec(one, 'float32', shape, unused=one == 'img_shape' and not clipped)
            for one, shape in zip(names, axes, strict=True)
        ),
        (TensorSpec('dets', 'float32', ('B', 'n', 5)), TensorSpec('labels', 'int64', ('B', 'n'))),
    )
    stage = Stage('postprocess', form, names, ('dets', 'labels'))
    options = dense_heads.FAMILY.choose(opset=17, dynamic=True)
    model = export.export_stages([stage], dict(zip(names, traced, strict=True)), contract, options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    raw, clips, scales = images(head, 4)
    raw = [torch.cat([tensor, tensor[:1]]) for tensor in raw]
    clips, scales = [*clips, clips[0]], [*scales, scales[0]]
    given = dict(zip(names, (one.numpy() for one in inputs(form, raw, clips, scales)), strict=True))
    found = unpadded(*session.run(['dets', 'labels'], given))
    same(found, by_mmdet(head, raw, clips, scales), max(SIZE))


class GFocalHead(GFLHead):
    """One as repositories have it: the network outputs scores, and a column that no label stands for."""

    def _get_bboxes_single(self, cls_score_list, *others, **named):
        return super()._get_bboxes_single([level.logit() for level in cls_score_list], *others, **named)


def test_a_head_of_scores_loses_the_column_that_no_label_stands_for(monkeypatch):
    monkeypatch.setitem(REGISTERED.module_dict, 'GFocalHead', GFocalHead)
    cfg = load_config(str(CONFIGS / HEADS['GFLHead']))
    cfg.model.bbox_head.update(type='GFocalHead', num_classes=dense_heads.CLASSES)
    cfg.model.bbox_head.loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=False)
    cfg.model.test_cfg.nms_pre = 40
    head = dense_heads.FAMILY.head(cfg)
    raw, _, _ = images(head)
    scores, boxes = raw[: len(raw) // 2], raw[len(raw) // 2 :]
    wider = [torch.cat([level, torch.zeros_like(level[:, :1])], 1) for level in scores]
    assert {level.shape[1] for level in wider} == {head.cls_out_channels}
    tested = heads.kind_of(head).flatten(heads.kind_of(head).tested(head, (wider, boxes)))
    assert all(torch.equal(*pair) for pair in zip(tested, raw, strict=True))
    heads.check_results(head, 'raw')


def test_a_fixed_size_below_the_kernel_of_the_last_level_is_refused():
    model = dense_heads.detector(make_head('RepPointsHead'))
    size = dict(form='raw', height=256, width=320)
    with pytest.raises(UsageError, match=r'--shape 256 320: .* at least 257 pixels'):
        dense_heads.FAMILY.spec(model, dense_heads.FAMILY.choose(**size))
    spec = dense_heads.FAMILY.spec(model, dense_heads.FAMILY.choose(**size, dynamic=True))
    assert spec.inputs[0].axes == ('B', 3, 'H', 'W')
