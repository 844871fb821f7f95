"""`--max-candidates`: constant shapes, in operators that TensorRT has, and still equal to `get_bboxes`.

Where more candidates than K are over the threshold, it is exact when the list is full, and refused else.
"""

import types

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv.ops import nms

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from dense_bench import (
    TEST_CFG,
    assert_same,
    by_mmdet,
    detector,
    full_inputs,
    make_head,
    random_outputs,
)
from marking import in_suite
from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.engines.tensorrt.limits import find_refusals
from mmdeploy_ext.exporting import export
from mmdeploy_ext.exporting.postprocess.suppression import capped
from mmdeploy_ext.families.common.image_graphs import FULL_NAMES
from mmdeploy_ext.families.dense import runtime
from mmdeploy_ext.families.dense.graphs import DenseFullForm
from mmdeploy_ext.spec.options import IMAGE, Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.operators.nms import nms_of_sorted

SIZE = (64, 96)
CAP = 130
"""All that the head has at SIZE: 50 + 50 + 30."""
NMS = TEST_CFG['nms']
CASES = {
    'default': {},
    'more rows than candidates': dict(max_per_img=1000),
    'no limit of rows': dict(max_per_img=-1),
    'class agnostic': dict(nms=dict(NMS, class_agnostic=True)),
    'score_thr 0': dict(score_thr=0.0),
    'no suppression': dict(nms=dict(NMS, iou_threshold=1.0)),
}
OPTIONAL = dict(
    img_shape=np.array([(50, 90), (64, 61)], np.float32),
    scale_factor=np.array([(0.5, 0.25, 0.5, 0.25), (2.0, 3.0, 2.0, 3.0)], np.float32),
)


def exported(head, cap=CAP, batch=1, opset=17):
    """Export the capped post-processing at SIZE, traced on other values than the tests use."""
    raw = random_outputs(99, batch, SIZE)
    example = full_inputs(raw, SIZE)
    inputs = tuple(TensorSpec(name, 'float32', tuple(array.shape)) for name, array in example.items())
    rows = capped(cap, head.test_cfg['max_per_img'])
    outputs = (
        TensorSpec('dets', 'float32', (batch, rows, 5)),
        TensorSpec('labels', 'int64', (batch, rows)),
        TensorSpec('candidates', 'int64', (batch,)),
    )
    form = DenseFullForm(detector(head), cap)
    stage = Stage('postprocess', form, tuple(example), FULL_NAMES, 'torchscript')
    return export.export_stages(
        [stage], example, GraphSpec('capped', inputs, outputs), Options(IMAGE, opset=opset)
    )


def run(model, raw, **optional):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    feeds = {name: tensor.numpy() for name, tensor in full_inputs(raw, SIZE, **optional).items()}
    return session.run(list(FULL_NAMES), feeds)


def found_by(head, outputs, cap=CAP):
    """Return what the runtime makes of the outputs; raises where some may be missing."""
    metadata = types.SimpleNamespace(
        form='full',
        options=dict(max_candidates=cap),
        postprocess=types.SimpleNamespace(max_per_img=head.test_cfg['max_per_img']),
    )
    images = runtime.detections(metadata, dict(zip(FULL_NAMES, outputs, strict=True)), {})
    return [(np.c_[image.bboxes_xyxy, image.scores], image.labels) for image in images]


def few(seed, batch=1):
    """Return outputs of a head with some dozen candidates."""
    return random_outputs(seed, batch, SIZE, mean=-4.6, spread=1.0)


@pytest.mark.parametrize(
    ('case', 'opset'),
    in_suite(
        [*((case, 17) for case in CASES), ('default', 11), ('default', 20)],
        ('more rows than candidates', 17),
    ),
)
def test_the_capped_graph_equals_get_bboxes(case, opset):
    head = make_head(**CASES[case])
    most = dict(max_per_img=max(head.test_cfg['max_per_img'], CAP))  # mmdet loses the last one with -1
    model = exported(head, batch=2, opset=opset)
    for seed, optional in enumerate([{}, OPTIONAL]):
        raw = few(seed, 2)
        wanted = by_mmdet(head, raw, SIZE, **optional, **(most if case == 'no limit of rows' else {}))
        assert min(len(labels) for _, labels in wanted) > 0
        outputs = run(model, raw, **optional)
        assert_same(found_by(head, outputs), wanted)
    rows = capped(CAP, head.test_cfg['max_per_img'])
    assert [output.shape for output in outputs] == [(2, rows, 5), (2, rows), (2,)]
    assert not find_refusals(model, rtx=True)


def test_more_candidates_than_k_are_exact_where_the_list_is_full_and_refused_else():
    raw = random_outputs(1, 1, SIZE)
    full = make_head(max_per_img=20)
    outputs = run(exported(full, 60), raw)
    assert outputs[2][0] > 60
    assert_same(found_by(full, outputs, 60), by_mmdet(full, raw, SIZE))
    lacking = make_head(max_per_img=-1)
    outputs = run(exported(lacking, 60), raw)
    with pytest.raises(ModelFileError, match=rf'{outputs[2][0]}.*--max-candidates 60'):
        found_by(lacking, outputs, 60)


def slowly(boxes, threshold):
    """Suppress box by box with mmcv's own NMS."""
    keep = np.zeros(len(boxes), bool)
    scores = torch.linspace(1, 0.5, len(boxes))
    keep[nms(boxes, scores, threshold)[1].numpy()] = True
    return keep


@pytest.mark.parametrize('grid', [0, 8])
@pytest.mark.parametrize(('count', 'threshold'), [(1, 0.5), (200, 0.5), (200, 1.0)])
def test_suppression_of_sorted_boxes_equals_mmcvs(count, threshold, grid):
    """With a grid boxes repeat, have no area, and overlap by exactly the threshold."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (2, count, 2)).astype(np.float32)
    corners = np.round(corners / grid) * grid if grid else corners
    boxes = torch.from_numpy(np.concatenate([corners.min(0), corners.max(0)], 1).astype(np.float32))
    kept = nms_of_sorted(torch.stack([boxes, boxes.flip(0)]), threshold).numpy()
    np.testing.assert_array_equal(kept[0], slowly(boxes, threshold))
    np.testing.assert_array_equal(kept[1], slowly(boxes.flip(0), threshold))
