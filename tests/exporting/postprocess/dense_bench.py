"""A small ATSSHead, random outputs of it, mmdet's own `get_bboxes` as reference, and comparison as sets."""

import copy
import types

import numpy as np
import onnxruntime
import torch
from mmcv import ConfigDict
from mmdet.models import build_head

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.exporting import export
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.common.runtime import dense
from mmdeploy_ext.families.dense import runtime
from mmdeploy_ext.families.dense.family import DenseFamily
from mmdeploy_ext.families.dense.graphs import DenseFullForm, raw_names
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec

STRIDES = (8, 16, 32)
CLASSES = 5
TEST_CFG = dict(score_thr=0.05, nms_pre=50, nms=dict(type='nms', iou_threshold=0.6), max_per_img=100)
OPTIONAL = ('img_shape', 'scale_factor')


def make_head(clip_border=True, center_offset=0.0, scales_per_octave=1, **test_cfg):
    config = dict(
        type='ATSSHead',
        num_classes=CLASSES,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        norm_cfg=dict(type='GN', num_groups=2),
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=4,
            scales_per_octave=scales_per_octave,
            strides=list(STRIDES),
            center_offset=center_offset,
        ),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
            clip_border=clip_border,
        ),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True),
    )
    return build_head(dict(config, test_cfg=ConfigDict({**TEST_CFG, **test_cfg}))).eval()


def detector(head):
    """Return a detector of which there is the head alone: all that the post-processing looks at."""
    return torch.nn.ModuleDict({'bbox_head': head}).eval()


RAW_NAMES = raw_names(detector(make_head()))


def random_outputs(seed, batch=1, size=(96, 128), mean=-2.5, spread=1.5, deltas=1.5, anchors=1):
    """Return the raw outputs of a head, kind by kind."""
    generator = torch.Generator().manual_seed(seed)
    shapes = dense.level_shapes(*size, STRIDES)

    def draw(columns, scale, offset):
        return [
            torch.randn(batch, anchors * columns, *shape, generator=generator) * scale + offset
            for shape in shapes
        ]

    return [*draw(CLASSES, spread, mean), *draw(4, deltas, 0.0), *draw(1, 1.5, 0.5)]


def by_mmdet(head, raw, size, img_shape=None, scale_factor=None, **test_cfg):
    """Return mmdet's detections: one (n, 5) array and one (n,) array of labels per image."""
    levels, batch = len(STRIDES), raw[0].shape[0]
    img_shape = np.full((batch, 2), size) if img_shape is None else img_shape
    metas = [
        dict(
            img_shape=(*map(float, img_shape[image]), 3),
            scale_factor=None if scale_factor is None else scale_factor[image],
        )
        for image in range(batch)
    ]
    cfg = copy.deepcopy(head.test_cfg)
    cfg.update(test_cfg)
    with torch.no_grad():
        results = head.get_bboxes(
            raw[:levels],
            raw[levels : 2 * levels],
            raw[2 * levels :],
            img_metas=metas,
            cfg=cfg,
            rescale=scale_factor is not None,
        )
    return [(dets.numpy(), labels.numpy()) for dets, labels in results]


def full_inputs(raw, size, img_shape=None, scale_factor=None):
    """Return the inputs of `DenseFullForm` as a dict of tensors; what is None takes its default."""
    batch = raw[0].shape[0]
    img_shape = np.zeros((batch, 2)) if img_shape is None else img_shape
    scale_factor = np.ones((batch, 4)) if scale_factor is None else scale_factor
    named = dict(
        input=torch.zeros(batch, 3, *size),
        img_shape=torch.as_tensor(np.asarray(img_shape), dtype=torch.float32),
        scale_factor=torch.as_tensor(np.asarray(scale_factor), dtype=torch.float32),
    )
    return {**named, **dict(zip(RAW_NAMES, raw, strict=True))}


def eager(head, raw, size, cap=0, **optional):
    with torch.no_grad():
        found = DenseFullForm(detector(head), cap)(*full_inputs(raw, size, **optional).values())
    return [tensor.numpy() for tensor in found]


def spec(raw):
    """Return the contract of the post-processing alone, everything but the channels dynamic."""
    tensors = [TensorSpec('input', 'float32', ('B', 3, 'H', 'W'))]
    tensors += [TensorSpec('img_shape', 'float32', ('B', 2), default=0.0)]
    tensors += [TensorSpec('scale_factor', 'float32', ('B', 4), default=1.0)]
    for name, tensor in zip(RAW_NAMES, raw, strict=True):
        tensors.append(TensorSpec(name, 'float32', ('B', tensor.shape[1], f'{name}_h', f'{name}_w')))
    outputs = (TensorSpec('dets', 'float32', ('B', 'n', 5)), TensorSpec('labels', 'int64', ('B', 'n')))
    return GraphSpec('postprocess', tuple(tensors), outputs)


def exported(head, opset, traced_size=(64, 96), seed=99, **options):
    """Export the post-processing, traced on other values and another size than the tests use."""
    anchors = len(head.prior_generator.base_anchors[0])
    raw = random_outputs(seed, 1, traced_size, anchors=anchors)
    contract = spec(raw)
    names = tuple(contract.input_names)
    stage = Stage('postprocess', DenseFullForm(detector(head)), names, ('dets', 'labels'))
    model = export.export_stages(
        [stage],
        full_inputs(raw, traced_size),
        contract,
        FAMILIES['dense'].choose(opset=opset, dynamic=True, **options),
    )
    session = onnxruntime.SessionOptions()
    session.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), session, providers=['CPUExecutionProvider']
    )


def run(session, raw, size, **optional):
    feeds = {name: tensor.numpy() for name, tensor in full_inputs(raw, size, **optional).items()}
    return session.run(['dets', 'labels'], feeds)


def by_numpy(head, raw, size, form='raw', img_shape=None, scale_factor=None):
    """Return what `families/dense/runtime.py` makes of the outputs of a `raw` or `decode` graph."""
    facts = DenseFamily().facts(detector(head))
    batch = raw[0].shape[0]
    outputs = dict(zip(RAW_NAMES, (tensor.numpy() for tensor in raw), strict=True))
    if form == 'decode':
        outputs = dense.decode_raw(outputs, *size, facts)
    feeds = dict(input=np.zeros((batch, 3, *size), np.float32))
    for name, value in dict(img_shape=img_shape, scale_factor=scale_factor).items():
        if value is not None:
            feeds[name] = np.asarray(value, np.float32)
    metadata = types.SimpleNamespace(form=form, postprocess=facts)
    found = runtime.detections(metadata, outputs, feeds)
    return [(np.c_[image.bboxes_xyxy, image.scores], image.labels) for image in found]


def unpadded(dets, labels):
    """Split padded outputs into images; padding has to be zeros with label -1, behind the detections."""
    images = []
    for rows, kinds in zip(dets, labels, strict=True):
        count = int((kinds >= 0).sum())
        assert (kinds[count:] == -1).all()
        assert not rows[count:].any()
        images.append((rows[:count], kinds[:count]))
    assert max((len(kinds) for _, kinds in images), default=0) == labels.shape[1]
    return images


def assert_same(found, wanted, scale=1.0):
    """Two lists of (dets, labels) hold the same detections, each in descending score order."""
    assert len(found) == len(wanted)
    for (dets, labels), (wanted_dets, wanted_labels) in zip(found, wanted, strict=True):
        assert dets.shape == wanted_dets.shape
        assert labels.dtype == np.int64
        assert (np.diff(dets[:, 4]) <= 0).all()
        assert np.isfinite(dets).all()
        free = np.ones(len(dets), bool)
        for row, label in zip(wanted_dets, wanted_labels, strict=True):
            near = free & (labels == label) & (np.abs(dets[:, 4] - row[4]) <= 1e-6)
            near &= np.abs(dets[:, :4] - row[:4]).max(1) <= 1e-3 * scale
            assert near.any(), f'no detection like {row} of class {label}'
            free[near.argmax()] = False
